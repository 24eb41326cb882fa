"""Judging controllers: on tasks that they have never seen, with no training on them, against what a practitioner does.

`problems` says what is trained and by which seeds, `methods` the ways to train, `contenders` who is compared, `runner`
and `results` play and keep, `statistics`, `report` and `scoreboard` say what was found.
"""

"""Controllers of the learning rate that were trained on a family of tasks, and the schedules they are judged by."""

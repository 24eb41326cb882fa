"""Controllers of the learning rate: those that were trained on a family of tasks, and the schedules they are judged by."""

"""Training from photos.

`data` makes patches, `degradations` their low-quality versions; `rollout` and `objective` are the losses; `loop` runs
the steps of any network, and `trainer` has those of denoisers; `official_config` reads trainings from YAML files.
"""

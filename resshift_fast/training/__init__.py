"""Training from photos.

`data` makes patches, `degradations` their low-quality versions; `rollout` and `objective` are the losses; `trainer`
runs the loop; `official_config` reads trainings from YAML files.
"""

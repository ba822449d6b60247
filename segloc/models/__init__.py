"""The networks: backbone with FPN and attention, RoI head, and the query and key networks of pretraining."""

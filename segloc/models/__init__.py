"""The networks: backbone with FPN and attention, RoI head, and the query/key pair that pretraining trains."""

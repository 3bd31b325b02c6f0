"""What a run says when a shard is gone or a rank is lost, and what finding out costs."""


def lose_a_shard(config, shards):
    return {}


def lose_a_rank(n):
    return {}

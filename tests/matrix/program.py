"""The first thing that every process of the matrix runs. A server of parameters loads TensorFlow and nothing else."""

from __future__ import annotations

import os

_CPU_COUNT = {"local": 4, "client": 2}


def main() -> None:
    """Makes this process's devices, and then either its visits or, as a server, whatever it is asked to."""
    import tensorflow as tf

    task = os.environ["MATRIX_TASK"]
    tf.get_logger().setLevel("ERROR")  # not a line for each variable that a mesh lays out
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration() for _ in range(_CPU_COUNT.get(task, 1))]
    )
    if os.environ["MATRIX_GROUP"] == "servers" and task != "chief":
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        server = tf.distribute.Server(
            resolver.cluster_spec(), job_name=resolver.task_type, task_index=resolver.task_id, protocol="grpc"
        )
        server.join()
    else:
        from tests.matrix import visits

        visits.make_all()

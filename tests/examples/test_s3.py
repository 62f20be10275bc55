"""examples/s3.py, on a real S3 server."""

from __future__ import annotations

from pathlib import Path

from tests import servers
from tests.examples.lives import WITHOUT_END, Example, finished_after, resumed_after


def test_it_is_killed_and_goes_on(seaweedfs: servers.Server, tmp_path: Path) -> None:
    env = {
        "AWS_ENDPOINT_URL": seaweedfs.endpoint,
        "AWS_ACCESS_KEY_ID": servers.S3_KEY,
        "AWS_SECRET_ACCESS_KEY": servers.S3_SECRET,
        "AWS_DEFAULT_REGION": servers.S3_REGION,
    }
    options = seaweedfs.storage_options
    example = Example("s3.py", tmp_path / "logs", args=["--save-every", "40"], env=env, storage_options=options)
    run, reference = "s3://ckptflow-tests/examples-s3/run", "s3://ckptflow-tests/examples-s3/reference"
    killed_at = example.be_killed(run, "--steps", WITHOUT_END)

    last = killed_at + 60
    resumed, uninterrupted = example.run(run, reference, args=["--steps", str(last)])
    assert (resumed_after(resumed), resumed_after(uninterrupted)) == (killed_at, 0)
    assert finished_after(resumed) == example.steps(run)[-1] == last
    assert "damaged: none" in resumed
    example.assert_same(run, reference, last)
    stored = servers.s3_client(seaweedfs).list_objects_v2(Bucket="ckptflow-tests", Prefix="examples-s3/run/")
    assert [entry["Key"] for entry in stored["Contents"] if entry["Key"].endswith("manifest.json")]

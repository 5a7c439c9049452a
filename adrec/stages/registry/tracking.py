"""Bundles of the registry in MLflow's model registry, where MLflow is installed."""

from typing import Any

from adrec.errors import ResourceError
from adrec.stages.registry.folder import Registry

MODEL = "adrec"


def require() -> Any:
    """The mlflow package. Raises ResourceError where it is missing."""
    try:
        import mlflow
    except ImportError:
        raise ResourceError("mlflow is set, and is not installed. Install it with: pip install mlflow") from None
    return mlflow


def register(address: str, registry: Registry, record: dict[str, Any]) -> None:
    """One run and one model version a bundle, with its figures; the alias `champion` follows the registry.

    A bundle that is registered already is left as it is. Raises ResourceError where MLflow does not answer.
    """
    mlflow = require()
    client = mlflow.MlflowClient(tracking_uri=address, registry_uri=address)
    try:
        if not client.search_registered_models(f"name='{MODEL}'"):
            client.create_registered_model(MODEL)
        versions = {version.tags.get("adrec.name"): version.version for version in _versions(client)}
        if record["name"] not in versions:
            versions[record["name"]] = _create(client, registry, record)
        if registry.champion in versions:
            client.set_registered_model_alias(MODEL, "champion", versions[registry.champion])
    except mlflow.exceptions.MlflowException as error:
        line = str(error).splitlines()[0]
        raise ResourceError(f"mlflow at {address}: {line}. The registry itself is done; run the same command again.") from None


def _versions(client: Any) -> list[Any]:
    return list(client.search_model_versions(f"name='{MODEL}'"))


def _create(client: Any, registry: Registry, record: dict[str, Any]) -> str:
    experiment = client.get_experiment_by_name(MODEL)
    number = experiment.experiment_id if experiment is not None else client.create_experiment(MODEL)
    tags = {"adrec.name": record["name"], "adrec.verdict": record["verdict"], "adrec.data": record["data"]["fingerprint"]}
    made = client.create_run(number, run_name=record["name"], tags=tags)
    for figure in record["figures"]:
        client.log_metric(made.info.run_id, figure["metric"].replace("@", "_at_"), figure["new"])
    client.set_terminated(made.info.run_id)
    source = registry.bundle(record["name"]).resolve().as_uri()
    return str(client.create_model_version(MODEL, source, made.info.run_id, tags=tags).version)

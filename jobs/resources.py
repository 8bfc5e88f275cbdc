"""What a stage's workers need of Ray; none of it changes results."""

from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt, model_validator

_RESERVED: Final = ("CPU", "GPU", "memory", "object_store_memory")


def _custom(resources: dict[str, float]) -> dict[str, float]:
    for name, amount in resources.items():
        if name in _RESERVED or not name.strip():
            raise ValueError(f"{name!r} is no custom resource; use num_cpus and num_gpus, and names of your own here")
        if amount > 1 and not amount.is_integer():
            raise ValueError(f"{name} is {amount:g}; Ray takes whole numbers above 1")
    return resources


CustomResources = Annotated[dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]], AfterValidator(_custom)]
"""Ray's custom resources by name."""


class Resources(BaseModel):
    """What a stage's workers need; none of it changes results.

    Attributes:
        num_cpus: Ray's CPUs for a worker.
        num_gpus: Ray's GPUs for a worker; a share such as 0.5 lets two workers have one GPU together.
        resources: Other resources of Ray's for a worker, by name, as the machines of a cluster were started with them:
            `{sam: 1}` keeps a stage on those that have `sam`.
        min_workers: Workers that the stage may have even if others then have to wait.
        max_workers: Most workers at a time; those above the minimum only take what no other stage's minimum needs, and
            are given back when they have nothing to do (see `execution.idle_s`).
        threads: Threads of array libraries in a worker.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_cpus: NonNegativeFloat = 1
    num_gpus: NonNegativeFloat = 0
    resources: CustomResources = {}
    min_workers: PositiveInt = 1
    max_workers: PositiveInt = Field(default=2)
    threads: PositiveInt = 1

    @model_validator(mode="after")
    def _check(self) -> "Resources":
        if self.min_workers > self.max_workers:
            raise ValueError(
                f"min_workers {self.min_workers} is above max_workers {self.max_workers}; raise max_workers"
            )
        return self

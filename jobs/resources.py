"""What the workers of a stage request from Ray; none of it changes results."""

from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt, model_validator

_RESERVED: Final = ("CPU", "GPU", "memory", "object_store_memory")  # names that Ray itself gives a meaning


def _custom(resources: dict[str, float]) -> dict[str, float]:
    for name, amount in resources.items():
        if name in _RESERVED or not name.strip():
            raise ValueError(f"{name!r} is no custom resource; use num_cpus and num_gpus, and names of your own here")
        if amount > 1 and not amount.is_integer():  # Ray accepts fractions only below 1
            raise ValueError(f"{name} is {amount:g}; Ray takes whole numbers above 1")
    return resources


CustomResources = Annotated[dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]], AfterValidator(_custom)]
"""Ray's custom resources by name."""


class Resources(BaseModel):
    """What a stage's workers need; none of it changes results.

    Attributes:
        num_cpus: Ray's CPUs per worker.
        num_gpus: Ray's GPUs per worker; with 0.5 two workers share a GPU.
        resources: Ray's custom resources per worker, by name, as the machines of a cluster were started with them:
            `{sam: 1}` keeps a stage on the machines that have `sam`.
        min_workers: Workers that the stage may have even if other stages then have to wait.
        max_workers: Most workers at a time; those above the minimum only take what no other stage's minimum needs, and
            are released when they are idle (see `execution.idle_s`).
        threads: Threads of array libraries per worker.
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

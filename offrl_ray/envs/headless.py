"""ManiSkill on a machine without a GPU or Vulkan: physics and state observations, no pictures."""

import warnings
from typing import Any


class _NoMaterial:
    """Takes every argument, attribute and setter call of `sapien.render.RenderMaterial`, and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


def install() -> bool:
    """Give SAPIEN a stand-in for RenderMaterial if there is no render device; True where there is none.

    Tasks construct materials even with `render_backend="none"`; they need nothing else of the renderer.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Failed to find (system libvulkan|Vulkan ICD file|glvnd ICD file)")
        import sapien.render
    try:
        sapien.render.RenderMaterial()
    except RuntimeError:
        for module in (sapien.render, sapien.pysapien.render):  # tasks look in the first, SAPIEN's builders in both
            module.RenderMaterial = _NoMaterial
    return sapien.render.RenderMaterial is _NoMaterial

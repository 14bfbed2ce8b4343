"""A workbench that also builds the plain forms, and the fast form with every token through the last block."""

from __future__ import annotations

from dataclasses import dataclass

import methods
from benchmark.backbones import Backbone
from benchmark.efficiency.workbench import Form, Workbench
from methods.base import Method
from tests import plain as plain_forms


@dataclass(frozen=True)
class PlainForm(Form):
    """One way to build and feed a method.

    Attributes:
        plain: in the form of this package.
        every_token: the fast form, but with every token through the last block.
    """

    plain: bool = False
    every_token: bool = False


class PlainBench(Workbench):
    """Builds methods in their plain and fast forms; plain forms get texts padded to the context length."""

    def make(self, form: Form, backbone: Backbone) -> Method:
        """Return a form's method on a backbone."""
        if getattr(form, "plain", False):
            build = plain_forms.build
        else:
            build = plain_forms.with_every_token if getattr(form, "every_token", False) else methods.build
        return build(form.method, backbone, **form.options)

    def pads(self, method: Method) -> bool:
        """Return whether a method takes texts padded to the context length."""
        return super().pads(method) or isinstance(method, plain_forms.OneByOne)

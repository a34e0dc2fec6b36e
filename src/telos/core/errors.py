"""One kind of error for everything that a user can put right."""


class TelosError(Exception):
    """What went wrong, what was expected, what was got, and the fix; the CLI prints it and exits with 2.

    Args:
        what: names the thing: file, record, field, option, device.
        expected, got, fix: short phrases; empty ones are left out.
    """

    def __init__(self, what: str, *, expected: str = "", got: str = "", fix: str = ""):
        self.what, self.expected, self.got, self.fix = what, expected, got, fix
        parts = [what]
        parts += [f"  {name}: {text}" for name, text in (("expected", expected), ("got", got), ("fix", fix)) if text]
        super().__init__("\n".join(parts))


class HealthError(TelosError):
    """Training stopped because its numbers say that it cannot be learning (NaN, zero gradient, ...)."""

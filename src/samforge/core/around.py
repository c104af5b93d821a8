"""What sessions share that only look at another's calls: they are that session, but for ``run``."""

from __future__ import annotations

from samforge.core.session import PartSpec, Session


class AroundSession:
    """Everything but ``run`` of a session that stands around another."""

    __slots__ = ()

    session: Session
    """Does the work."""

    @property
    def spec(self) -> PartSpec:
        """Interface of the part."""
        return self.session.spec

    @property
    def runtime(self) -> str:
        """Name of the backend."""
        return self.session.runtime

    @property
    def processor(self) -> str:
        """Where it runs."""
        return self.session.processor

    def close(self) -> None:
        """Free the weights."""
        self.session.close()

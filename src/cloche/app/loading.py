"""Finding the Celery application that ``-A`` names, and reading its configuration."""

from __future__ import annotations

import difflib
import os
import pkgutil
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from celery import Celery
from celery.app.utils import find_app
from celery.fixups.django import DjangoFixup
from celery.local import Proxy
from celery.utils.dispatch import Signal

from cloche.errors import AppError, ClocheError
from cloche.settings.of_app import state_of

#: Where code lies that is not the project's.
_INSTALLED = tuple(
    {os.path.join(os.path.realpath(path), "") for path in sysconfig.get_paths().values()}
    | {os.path.join(os.path.realpath(Path(__file__).parents[1]), "")}
)


def load_app(name: str) -> Celery:
    """Import ``module``, ``module:attribute`` or ``package`` as ``celery -A`` does.

    The working directory is importable. Raises AppError saying what could not be found,
    or which line of the project failed.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        app = app_itself(find_app(name))
        if isinstance(app, Celery):
            _set_up_django(app)
    except ClocheError:
        raise  # what the project does with Cloche says what is wrong itself
    except ModuleNotFoundError as error:
        raise _missing_module(name, error) from error
    except AttributeError as error:
        if _line(error):
            raise _broken_module(name, error) from error
        raise AppError(
            f"there is no Celery application at {name!r}",
            why=str(error),
            fix="name it as module:attribute, for example -A proj.celery:app",
        ) from error
    except Exception as error:
        raise _broken_module(name, error) from error
    if not isinstance(app, Celery):
        raise AppError(
            f"{name!r} is a {type(app).__name__}, not a Celery application",
            fix="name it as module:attribute, for example -A proj.celery:app",
        )
    return app


def app_itself(app: Celery) -> Celery:
    """The application that a proxy like ``celery.current_app`` stands for: workers have that one,
    and who compares theirs with the proxy would not know them."""
    return app._get_current_object() if isinstance(app, Proxy) else app


def configure(app: Celery) -> None:
    """Read the configuration of an application whose modules are imported, as its first use
    would. Raises AppError with the line of the project that fails."""
    try:
        app.conf.finalize()
        _tell_configured(app)
    except ClocheError:
        raise
    except Exception as error:
        raise AppError(
            f"the configuration of the Celery application {app.main!r} cannot be read",
            why=described(error),
            fix="correct that line; --debug shows the whole traceback",
        ) from error


def configure_quietly(app: Celery) -> None:
    """Read the configuration while the application's modules are still being imported.

    Handlers of ``on_after_configure`` that are connected further down would miss the signal,
    which without us comes with the first use of the application: it is sent when the
    application is complete.
    """
    if app.configured:
        app.conf.finalize()
        return
    signal, app.on_after_configure = app.on_after_configure, Signal(name="not yet")
    try:
        app.conf.finalize()
    finally:
        app.on_after_configure = signal
    state_of(app).untold = True
    app.on_after_finalize.connect(
        lambda **_: _tell_configured(app), weak=False, dispatch_uid="cloche-configured"
    )


def _tell_configured(app: Celery) -> None:
    state = state_of(app)
    if state.untold:
        state.untold = False
        app.on_after_configure.send(sender=app, source=app.conf)


def described(error: BaseException) -> str:
    """``file:line: Type: words``: the project's own line, as far as there is one."""
    causes = tuple(_causes(error))
    where = next(filter(None, map(_line, causes)), "")
    # Celery wraps an AttributeError in a ModuleNotFoundError (Celery._finalize_pending_conf).
    first = causes[0]
    return f"{where}{type(first).__name__}: {first}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error that came first, then what others made of it."""
    if error.__cause__ is not None:
        yield from _causes(error.__cause__)
    yield error


def _line(error: BaseException) -> str:
    """``file:line: `` of the last line that is neither Python's nor a package's."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: "
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_own(frame.filename)]
    return f"{own[-1].filename}:{own[-1].lineno}: " if own else ""


def _is_own(filename: str) -> bool:
    path = Path(os.path.realpath(filename))
    packages = {"site-packages", "dist-packages"}.intersection(path.parts)
    return not (filename.startswith("<") or packages or str(path).startswith(_INSTALLED))


def _set_up_django(app: Celery) -> None:
    """Load Django's models in a Django project, as Celery's worker does before it imports tasks.

    Reading results from ``django-db`` or schedules from the database needs them too.
    """
    if any(isinstance(fixup, DjangoFixup) for fixup in app._fixups):
        import_module("django").setup()


def _missing_module(name: str, error: ModuleNotFoundError) -> AppError:
    module = name.partition(":")[0]
    missing = error.name or module
    if missing != module and not module.startswith(f"{missing}."):
        return _broken_module(name, error)
    top = missing.partition(".")[0]
    known = [entry.name for entry in pkgutil.iter_modules([str(Path.cwd())])]
    near = difflib.get_close_matches(top, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near and near[0] != top else ""
    return AppError(
        f"the Celery application {name!r} cannot be found: no module named {missing!r}",
        why=f"looked in {Path.cwd()} and the installed packages",
        fix=f"{hint}run this where the project can be imported, or correct -A",
    )


def _broken_module(name: str, error: Exception) -> AppError:
    return AppError(
        f"importing the Celery application {name!r} failed",
        why=described(error),
        fix="correct that line; --debug shows the whole traceback",
    )


def broken_task_module(error: Exception) -> AppError:
    """A task module that ``imports``, ``include`` or autodiscovery names fails. With traceback."""
    text = "".join(traceback.format_exception(error))
    return AppError(
        f"a task module cannot be imported: {described(error)}",
        why="\n" + text.rstrip(),
        fix="correct that line, or take the module out of imports and include",
    )

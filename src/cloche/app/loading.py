"""Finding the Celery application that ``-A`` names."""

from __future__ import annotations

import difflib
import pkgutil
import sys
import traceback
from pathlib import Path

from celery import Celery
from celery.app.utils import find_app

from cloche.errors import AppError


def load_app(name: str) -> Celery:
    """Import ``module``, ``module:attribute`` or ``package`` as ``celery -A`` does.

    The working directory is importable. Raises AppError saying what could not be found,
    or which line of the project failed.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        app = find_app(name)
    except ModuleNotFoundError as error:
        raise _missing_module(name, error) from error
    except AttributeError as error:
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
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "importlib" not in frame.filename]
    where = f"{own[-1].filename}:{own[-1].lineno}: " if own else ""
    return AppError(
        f"importing the Celery application {name!r} failed",
        why=f"{where}{type(error).__name__}: {error}",
        fix="correct that line; --debug shows the whole traceback",
    )

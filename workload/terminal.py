"""Output to any terminal, and to a reader that may stop reading; silence while libraries start."""

import codecs
import contextlib
import errno
import io
import locale
import logging
import os
import sys
import warnings
from collections.abc import Iterator

GONE = (errno.EPIPE, errno.EIO)  # `| head` has seen enough; the terminal was closed


class _Output(io.TextIOWrapper):
    """A stream that drops all output once its reader has gone, instead of ending the writer.

    Args:
        stream: the stream to replace.
        errors: how characters are written that the terminal's encoding lacks; see `codecs`.
    """

    def __init__(self, stream: io.TextIOWrapper, errors: str) -> None:
        super().__init__(stream.buffer, stream.encoding, errors, line_buffering=stream.line_buffering,
                         write_through=stream.write_through)
        self.replaced = stream  # kept, for it would close the file when it is deleted

    def write(self, text: str) -> int:
        with self._dropping():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            super().flush()

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # also for text that is still in buffers
            os.close(nowhere)
            if error.errno not in GONE:
                raise


def print_anywhere(errors: str = "backslashreplace") -> None:
    """Let standard output and error take any text, whatever the terminal's encoding, and outlive their reader.

    Args:
        errors: how standard output writes characters that the terminal's encoding lacks; see `codecs`.
    """
    if type(sys.stdout) is io.TextIOWrapper:  # neither closed nor replaced by others
        sys.stdout = _Output(sys.stdout, errors)
    if type(sys.stderr) is io.TextIOWrapper:
        sys.stderr = _Output(sys.stderr, "backslashreplace")
    # In an ASCII locale libraries cannot read their own files. (Python itself avoids it, unless PYTHONUTF8 is 0.)
    if codecs.lookup(locale.getpreferredencoding(False)).name == "ascii":
        with contextlib.suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, "C.UTF-8")


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence libraries while they start. They raise errors instead of printing them, so none is lost."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)

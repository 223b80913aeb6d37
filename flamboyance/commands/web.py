"""`web`: a page to build few-shot prompts on, and to see what a model makes of them."""

import argparse
import os
import socket
import sys
import tempfile
import threading
from importlib.util import find_spec

from flamboyance.commands.arguments import add_model, at_least
from flamboyance.commands.models import load, model_name, note_default

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--compare", action="append", default=[], metavar="NAME|DIR", help="another model to compare with; repeatable"
    )
    group = parser.add_argument_group("address")
    group.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine alone")
    group.add_argument("--port", type=at_least(0), default=7860, metavar="N", help="0: any free one (default: 7860)")


def web(arguments: argparse.Namespace) -> int:
    """Serve the page until the process is stopped."""
    if find_spec("gradio") is None:
        raise ImportError("web needs gradio: pip install 'flamboyance[web]', or pip install gradio")
    name = model_name(arguments)
    if name in arguments.compare or len(set(arguments.compare)) < len(arguments.compare):
        raise ValueError(f"--compare {', '.join(arguments.compare)}: expected other models than {name}, each once")
    port = _free(arguments.host, arguments.port)
    # Read when gradio is imported: no telemetry, and uploads in a folder that ends with this process.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with tempfile.TemporaryDirectory(prefix="flamboyance-web-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        from flamboyance.web import page
        from flamboyance.web.answers import Answers

        models = {
            one: load(one, arguments.device, arguments.dtype, quantize=arguments.quantize)
            for one in (name, *arguments.compare)
        }
        if arguments.model is None:
            note_default()
        blocks = page.build(Answers(models))
        try:
            _, address, _ = blocks.launch(
                server_name=arguments.host,
                server_port=port,
                theme=page.theme(),
                css_paths=page.HERE / "style.css",
                prevent_thread_lock=True,
                share=False,
                ssr_mode=False,
                run_history=False,
                footer_links=[],
                quiet=True,
                show_error=True,
                max_file_size="64mb",
            )
            if arguments.host not in LOOPBACK:
                print("flamboyance: warning: whoever reaches this address can use the page", file=sys.stderr)
            print(f"{address.rstrip('/')}  (stop with Ctrl-C)", flush=True)
            threading.Event().wait()
        finally:
            blocks.close(verbose=False)
    return 0


def _free(host: str, port: int) -> int:
    """The port, or a free one for 0.

    Raises:
        OSError: it is in use, or the host is not this machine.
    """
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            return probe.getsockname()[1]
    except OSError as error:
        raise OSError(
            f"cannot listen on {host}, port {port}: {error.strerror}; give another --port or --host"
        ) from error

"""Open a page to try an exported model: type or record, read and hear the answer while it is made.

python ttt_dist/serve.py --model runs/demo/export
python ttt_dist/serve.py --model runs/demo/export --port 8000
python ttt_dist/serve.py --model runs/glm/export --decoder-command "python glm_decode.py {codes} {wav}"
"""

import argparse
import sys
from pathlib import Path

# Run as a file, Python puts this file's folder first into the path; its modules are to be found as ttt_dist.* only.
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ttt_dist.inference.flags import add_decoding_flags, settings_from_flags
from ttt_dist.util.console import print_rank0, run_command, warn


def main() -> None:
    """Listen, load the model, answer until interrupted."""
    arguments = parse_arguments()
    from ttt_dist.checkpoint.export import model_folder

    arguments.model = model_folder(arguments.model)
    settings = settings_from_flags(arguments)
    # Seconds to import: --help and mistakes of the command line do not wait for it.
    from ttt_dist.audio import load_codec
    from ttt_dist.inference.decoder import Decoder
    from ttt_dist.model.hf.folder import load_folder
    from ttt_dist.serving.app import App
    from ttt_dist.serving.decoding_thread import DecodingThread
    from ttt_dist.serving.request_builder import RequestBuilder, model_name
    from ttt_dist.serving.server import is_loopback, listen, serve, trusted_names, url_of

    listening = listen(arguments.host, arguments.port)
    folder = load_folder(arguments.model)
    decoder = Decoder(folder, batch_size=arguments.batch)
    decoder.require_mode(settings)
    codec = load_codec(folder.codec, decoder_command=arguments.decoder_command)
    if codec.no_decoder:
        warn(f"speech stays silent: {codec.no_decoder}")
    if not is_loopback(arguments.host):
        warn(f"--host {arguments.host}: whoever can reach this machine can use the model; there is no password")
    thread = DecodingThread(decoder)
    app = App(
        RequestBuilder(folder, codec, settings, model_name(arguments.model)), thread, trusted_names(arguments.host)
    )
    print_rank0(f"open {url_of(arguments.host, listening.getsockname()[1])} (Ctrl-C ends the server)")
    serve(listening, app)
    print_rank0("stopped")


def parse_arguments() -> argparse.Namespace:
    """The command line; bad usage ends with status 2."""
    summary, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, type=Path, help="exported model folder, or a checkpoint of a run")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine alone)"
    )
    parser.add_argument("--port", type=int, default=7860, help="port; 0: any that is free (default 7860)")
    parser.add_argument("--batch", type=int, default=32, help="requests decoded side by side (default 32)")
    parser.add_argument(
        "--decoder-command",
        metavar="COMMAND",
        help="program that makes the speech of the codes, with {codes} and {wav} in it (docs/codecs.md)",
    )
    add_decoding_flags(parser)
    arguments = parser.parse_args()
    if arguments.batch < 1 or not 0 <= arguments.port < 2**16:
        parser.error("--batch must be at least 1, --port from 0 to 65535")
    return arguments


def command() -> None:
    """The entry point `ttt-serve`."""
    run_command(main)


if __name__ == "__main__":
    command()

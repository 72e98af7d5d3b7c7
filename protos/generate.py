"""Generate the committed Python code (`_pb2`, `_pb2_grpc`, typed `.pyi`) beside the .proto sources.

No third-party .proto lives in this tree. `buf/validate/validate.proto` comes, as a descriptor, out of the protovalidate
wheel; the google ones come with grpcio-tools and googleapis-common-protos. `buf/validate/validate_pb2.py` is made here
at set-up and is not committed.

    python protos/generate.py             write the generated code
    python protos/generate.py --validate  write only buf/validate (what a fresh checkout needs)
    python protos/generate.py --image F   write only a buf image of our files, for `buf lint` and `buf breaking`
"""

import argparse
import os
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import google.rpc
from google.protobuf import descriptor_pb2, duration_pb2, field_mask_pb2, struct_pb2, timestamp_pb2, wrappers_pb2
from grpc_tools import protoc
from protovalidate._gen.buf.validate import validate_pb

ROOT = Path(__file__).resolve().parent
VALIDATE = "buf/validate/validate.proto"


def write_descriptor_set(path: Path) -> None:
    """Write validate.proto and what it imports as a FileDescriptorSet, which protoc takes for an import."""
    bundle = descriptor_pb2.FileDescriptorSet()
    for module in (descriptor_pb2, duration_pb2, timestamp_pb2, field_mask_pb2, wrappers_pb2, struct_pb2):
        module.DESCRIPTOR.CopyToProto(bundle.file.add())
    bundle.file.add().MergeFromString(validate_pb._DESC.proto.to_binary())
    path.write_bytes(bundle.SerializeToString(deterministic=True))


def run(arguments: list[str]) -> None:
    """Run protoc or leave with its exit code."""
    code = protoc.main(["protoc", *arguments])
    if code:
        sys.exit(code)


def main() -> None:
    """Parse the command line and generate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--validate", action="store_true", help="write only buf/validate")
    parser.add_argument("--image", type=Path, help="write only a buf image to this file")
    parser.add_argument("--out", type=Path, default=ROOT, help="where to write (default: beside the sources)")
    options = parser.parse_args()
    # protoc looks for its plugins (protoc-gen-mypy) on the PATH; they are beside this interpreter.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "validate.binpb"
        write_descriptor_set(bundle)
        if options.validate or options.out == ROOT:
            run([f"--descriptor_set_in={bundle}", f"--python_out={ROOT}", VALIDATE])
        if options.validate:
            return
        # The well-known types come from the bundle; google.rpc's sources from its package.
        common = Path(scratch) / "common.binpb"
        rpc = Path(next(iter(google.rpc.__path__))).parents[1]
        well_known = files("grpc_tools") / "_proto"
        run(
            [
                f"-I{rpc}",
                f"-I{well_known}",
                f"--descriptor_set_out={common}",
                "--include_imports",
                "google/rpc/code.proto",
                "google/protobuf/empty.proto",
            ]
        )
        arguments = [f"-I{ROOT}", f"--descriptor_set_in={bundle}:{common}"]
        sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "opsmesh").rglob("*.proto"))
        if options.image:
            options.image.parent.mkdir(parents=True, exist_ok=True)
            run(
                [
                    *arguments,
                    "--include_imports",
                    "--include_source_info",
                    f"--descriptor_set_out={options.image}",
                    *sources,
                ]
            )
            return
        services = [source for source in sources if "\nservice " in (ROOT / source).read_text(encoding="utf-8")]
        run([*arguments, f"--python_out={options.out}", f"--mypy_out=quiet:{options.out}", *sources])
        run([*arguments, f"--grpc_python_out={options.out}", f"--mypy_grpc_out=quiet:{options.out}", *services])


if __name__ == "__main__":
    main()

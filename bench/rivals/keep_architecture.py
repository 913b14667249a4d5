#!/usr/bin/env python3
"""Blanks the device code of other GPUs in a CUDA library, so that it packs small: for carrying, not for shipping.

  bench/rivals/keep_architecture.py 90 FILE.so...      # for GPUs of compute capability 9.0

nvcc embeds containers ("fatbins") with one image per architecture, headers in plain sight and the code compressed; a driver loads one image
of each. The images that a GPU of the given capability does not load are overwritten with zeros, which pack to nothing: sizes and offsets
stay. Kept are, in each container: the machine code of the same major version up to the given one; where there is none, the newest PTX up
to it. A container that would keep nothing is an error.
"""
import struct
import sys

MAGIC = struct.pack("<I", 0xBA55ED50)
HEADER = struct.Struct("<IHHQ")   # magic, version, bytes of this header, bytes of what follows
IMAGE = struct.Struct("<HHIQ")    # kind, version, bytes of this header, bytes of the image after it
ARCHITECTURE = struct.Struct("<I")
ARCHITECTURE_AT = 28
PTX, MACHINE_CODE = 1, 2


def images(data, begin, end):
    """(kind, architecture, first byte, one past the last) of each image of the container in [begin, end)."""
    while begin < end:
        kind, _, header, size = IMAGE.unpack_from(data, begin)
        body = begin + header
        if header < ARCHITECTURE_AT + 4 or body + size > end:
            raise ValueError(f"byte {begin}: an image of {header} + {size} bytes does not fit into its container, which ends at {end}")
        yield kind, ARCHITECTURE.unpack_from(data, begin + ARCHITECTURE_AT)[0], body, body + size
        begin = body + size


def kept(found, wanted):
    code = [i for i in found if i[0] == MACHINE_CODE and i[1] // 10 == wanted // 10 and i[1] <= wanted]
    if code:
        return code
    ptx = [i for i in found if i[0] == PTX and i[1] <= wanted]
    return [i for i in ptx if i[1] == max(p[1] for p in ptx)]


def blank(data, wanted):
    """Changes `data` (bytearray); returns (containers, bytes blanked)."""
    containers = blanked = at = 0
    while (at := data.find(MAGIC, at)) >= 0:
        _, _, header, size = HEADER.unpack_from(data, at)
        end = at + header + size
        if header != HEADER.size or end > len(data):
            at += len(MAGIC)  # these four bytes stand for something else
            continue
        found = list(images(data, at + header, end))
        keep = kept(found, wanted)
        if found and not keep:
            raise ValueError(f"byte {at}: nothing in it is for architecture {wanted}: {[(i[0], i[1]) for i in found]}")
        for image in found:
            if image not in keep:
                data[image[2]:image[3]] = bytes(image[3] - image[2])
                blanked += image[3] - image[2]
        containers, at = containers + 1, end
    return containers, blanked


def main():
    if len(sys.argv) < 3 or not sys.argv[1].isdigit():
        sys.exit(__doc__)
    for path in sys.argv[2:]:
        with open(path, "rb") as file:
            data = bytearray(file.read())
        try:
            containers, blanked = blank(data, int(sys.argv[1]))
        except ValueError as e:
            sys.exit(f"{path}: {e}")
        if not containers:
            sys.exit(f"{path}: holds no device code")
        with open(path, "wb") as file:
            file.write(data)
        print(f"{path.rsplit('/', 1)[-1]}: {blanked / 1e6:.1f} of {len(data) / 1e6:.1f} MB blanked in {containers} containers")


if __name__ == "__main__":
    main()

"""Every option and command of NBD by libnbd's Python binding, with its own checks switched off, so that the server's are
asked. What older versions of libnbd do not have is passed over, and named.

usage: libnbd.py URI            beside a file `image` with the bytes of the export
"""

import errno
import sys

import nbd

uri = sys.argv[1]
with open("image", "rb") as file:
    image = file.read()
absent = set()


def knows(handle, *methods):
    missing = [method for method in methods if not hasattr(handle, method)]
    absent.update(missing)
    return not missing


def fails(number, call, *arguments):
    """The server refuses the call, with this error where one is given."""
    try:
        call(*arguments)
    except nbd.Error as error:
        assert number is None or error.errno == number, (error.errno, number)
    else:
        raise AssertionError(f"{call} does not fail")


def negotiating(prepare=lambda handle: None):
    """A connection whose options are still to be haggled over."""
    handle = nbd.NBD()
    handle.set_strict_mode(0)
    handle.set_opt_mode(True)
    handle.set_full_info(True)
    prepare(handle)
    handle.connect_uri(uri)
    return handle


def options():
    handle = negotiating()
    names = []
    assert handle.opt_list(lambda name, description: names.append(name)) == 1
    assert names == ["disk"], names
    handle.set_export_name("no such export")
    fails("ENOENT", handle.opt_info)
    fails("ENOENT", handle.opt_go)
    handle.set_export_name("disk")
    handle.opt_info()
    assert handle.get_size() == len(image)
    assert handle.get_canonical_export_name() == "disk"
    assert handle.get_block_size(nbd.SIZE_MINIMUM) == 1
    assert handle.get_block_size(nbd.SIZE_PREFERRED) >= 512
    assert handle.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20

    contexts = []
    collect = contexts.append
    handle.add_meta_context("base:")
    handle.opt_list_meta_context(collect)
    assert contexts == ["base:allocation"], contexts
    handle.clear_meta_contexts()
    contexts.clear()
    handle.opt_list_meta_context(collect)
    assert {"base:allocation", "qemu:allocation-depth", "x-thinorigin:cached"} == set(contexts), contexts
    if knows(handle, "opt_set_meta_context_queries"):
        contexts.clear()
        handle.opt_set_meta_context_queries(["base:allocation", "x-nothing:of-the-kind"], collect)
        assert contexts == ["base:allocation"], contexts
    handle.opt_abort()

    # Nothing can be encrypted, and that is no end.
    if knows(handle, "opt_starttls"):
        handle = negotiating()
        assert handle.opt_starttls() is False
        handle.opt_info()
        handle.opt_abort()


def without_structured_replies():
    handle = negotiating(lambda handle: handle.set_request_structured_replies(False))
    handle.opt_go()
    assert not handle.get_structured_replies_negotiated()
    assert not handle.can_df()
    assert handle.pread(70000, 12345) == image[12345:82345]
    fails("EINVAL", handle.block_status, 512, 0, lambda *_: 0)
    handle.shutdown()


def structured_on_request():
    handle = negotiating(lambda handle: handle.set_request_structured_replies(False))
    if knows(handle, "opt_structured_reply"):
        assert handle.opt_structured_reply() is True
        assert handle.get_structured_replies_negotiated()
        if knows(handle, "opt_extended_headers"):
            assert handle.opt_extended_headers() is True
            assert handle.get_extended_headers_negotiated()
    handle.opt_go()
    assert handle.pread(512, 0) == image[:512]
    handle.shutdown()


def by_name_alone():
    """NBD_OPT_EXPORT_NAME, as a client does that knows no other."""
    handle = nbd.NBD()
    handle.set_strict_mode(0)
    handle.set_handshake_flags(0)
    handle.connect_uri(uri)
    assert handle.get_protocol() == "newstyle", handle.get_protocol()
    assert handle.pread(4096, 4096) == image[4096:8192]
    handle.shutdown()


def commands():
    handle = nbd.NBD()
    handle.set_strict_mode(0)
    for context in ("base:allocation", "qemu:allocation-depth", "x-thinorigin:cached"):
        handle.add_meta_context(context)
    handle.connect_uri(uri)
    assert handle.get_protocol() == "newstyle-fixed"
    assert handle.get_structured_replies_negotiated()
    for can in ("can_multi_conn", "can_cache", "can_df", "can_flush", "is_read_only"):
        assert getattr(handle, can)(), can
    for cannot in ("can_trim", "can_zero", "is_rotational"):
        assert not getattr(handle, cannot)(), cannot

    size = handle.get_size()
    assert handle.pread(size, 0) == image
    assert handle.pread(70000, 12345, nbd.CMD_FLAG_DF) == image[12345:82345]
    chunks = bytearray(size)
    kinds = set()

    def chunk(data, offset, kind, error):
        kinds.add(kind)
        chunks[offset:offset + len(data)] = data

    whole = handle.pread_structured(size, 0, chunk)
    assert whole == image and bytes(chunks) == image
    assert kinds == {nbd.READ_DATA, nbd.READ_HOLE}, kinds

    handle.cache(size, 0)
    handle.flush()

    def extents(ask, length, offset, *flags):
        found = {}
        ask(length, offset, lambda name, at, entries, error: found.__setitem__(name, list(entries)), *flags)
        return found

    found = extents(handle.block_status, size, 0)
    assert set(found) == {"base:allocation", "qemu:allocation-depth", "x-thinorigin:cached"}, found
    for context, entries in found.items():
        assert sum(entries[::2]) == size, (context, entries)
    one = extents(handle.block_status, 4096, 512, nbd.CMD_FLAG_REQ_ONE)
    assert all(len(entries) == 2 and entries[0] <= 4096 for entries in one.values()), one
    if knows(handle, "block_status_64"):
        found = extents(handle.block_status_64, size, 0)
        assert all(sum(length for length, _ in entries) == size for entries in found.values()), found

    # Many at once; each gets its own answer.
    buffers = [(offset, nbd.Buffer(5000)) for offset in range(0, 640000, 10000)]
    cookies = {handle.aio_pread(buffer, offset) for offset, buffer in buffers}
    while cookies:
        handle.poll(-1)
        cookies -= {cookie for cookie in cookies if handle.aio_command_completed(cookie)}
    for offset, buffer in buffers:
        assert bytes(buffer.to_bytearray()) == image[offset:offset + 5000], offset

    for refused in (
        lambda: handle.pread(512, size),
        lambda: handle.pread(512, size - 511),
        lambda: handle.pread(512, 0, 1 << 7),
        lambda: handle.cache(512, size),
        lambda: handle.block_status(512, size, lambda *_: 0),
        lambda: handle.block_status(512, 0, lambda *_: 0, nbd.CMD_FLAG_DF),
    ):
        fails("EINVAL", refused)
    for written in (
        lambda: handle.pwrite(b"x" * 100000, 0),
        lambda: handle.pwrite(b"x" * 512, 0, nbd.CMD_FLAG_FUA),
        lambda: handle.zero(512, 0),
        lambda: handle.zero(512, 0, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO),
        lambda: handle.trim(512, 0),
    ):
        fails("EPERM", written)
    assert handle.pread(512, 0) == image[:512]
    handle.shutdown()


for part in (options, without_structured_replies, structured_on_request, by_name_alone, commands):
    part()
    print(part.__name__)
if absent:
    print(f"this libnbd does not have: {', '.join(sorted(absent))}")

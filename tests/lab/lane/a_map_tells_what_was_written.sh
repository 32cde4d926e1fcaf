# What 'vdi map', 'vdi diff' and the utilisation of disks say is compared with what was written and discarded, block by
# block of the pool, and with what the kernel and the tools say; a metadata snapshot that a killed reader left is let go.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

make_image template.qcow2 -c
serve_over_http "$work"
smctl sr create --name lane "$SCRATCH"
smctl vdi introduce lane "$HTTP_URL/template.qcow2" --name template
smctl vdi clone lane template --name disk --size 80M
smctl vdi create lane --name plain --size 1M
disk=$(smctl vdi attach lane disk)
pool=$(dmsetup ls --target thin-pool)
pool=${pool%%[[:space:]]*}
held() { # where the metadata snapshot begins, or -
  local words
  read -ra words < <(dmsetup status "$pool")
  echo "${words[6]}"
}
name_of() { # DEVICE: what device-mapper calls it
  cat /sys/class/block/"$(basename "$(realpath "$1")")"/dm/name
}
mapped() { # DEVICE: bytes that the kernel says are mapped
  local words
  read -ra words < <(dmsetup status "$(name_of "$1")")
  echo $(( words[3] * 512 ))
}
used() { # VDI
  smctl vdi info lane "$1" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["physical_utilisation"])'
}

# Whole blocks, parts of blocks, and both sides of the end of the template.
write() { # DEVICE FIRST COUNT: blocks of 64 KiB
  dd if=/dev/urandom of="$1" bs=64k seek="$2" count="$3" conv=notrunc,fsync status=none
}
write "$disk" 3 2
write "$disk" 100 1
dd if=/dev/urandom of="$disk" bs=512 seek=$(( 200 * 128 + 127 )) count=2 conv=notrunc,fsync status=none
write "$disk" 1022 4
blkdiscard --force --offset 65536 --length $(( 3 * 65536 )) "$disk"
same "bytes that are used" "$(mapped "$disk")" "$(used disk)"

cat >check.py <<'PY'
# usage: check.py MAP.json TEMPLATE-MAP.json DEVICE BLOCKS...: the map has exactly these blocks at depth 0, shows the
# template at depth 1 and beyond, has no gap, and calls zero nothing that is not.
import json, sys
extents, template = json.load(open(sys.argv[1])), json.load(open(sys.argv[2]))
wanted = {int(block) for block in sys.argv[4:]}
CHUNK = 65536
at, own = 0, set()
with open(sys.argv[3], "rb") as device:
    for extent in extents:
        start, length = extent["start"], extent["length"]
        assert start == at and length > 0, extent
        at += length
        if extent["depth"] == 0 and extent["present"]:
            assert extent["data"] and not extent["zero"] and start % CHUNK == 0, extent
            own |= set(range(start // CHUNK, (start + length + CHUNK - 1) // CHUNK))
        elif extent["depth"] > 0:
            under = [t for t in template if t["start"] <= start and start + length <= t["start"] + t["length"]]
            assert len(under) == 1, extent
            for name in ("present", "zero", "data", "compressed"):
                assert under[0][name] == extent[name], (extent, under)
            assert under[0]["depth"] + 1 == extent["depth"], (extent, under)
        if extent["zero"]:
            device.seek(start)
            assert not any(device.read(length)), extent
    assert at == device.seek(0, 2), at
assert own == wanted, (sorted(own), sorted(wanted))
PY
thinorigin map --json --no-cache "$HTTP_URL/template.qcow2" >template.json
blocks=(4 100 200 201 {1022..1025})
smctl vdi map lane disk --json >map.json
python3 check.py map.json template.json "$disk" "${blocks[@]}"
smctl vdi map lane template --json >of-template.json
same "the map of a template" "$(<template.json)" "$(<of-template.json)"
same "the map of an empty disk" '1 False 1048576' "$(smctl vdi map lane plain --json |
  python3 -c 'import json, sys; m = json.load(sys.stdin); print(len(m), m[0]["present"], m[0]["length"])')"

# Differences: against a snapshot, in both directions, while the disk is attached.
smctl vdi snapshot lane disk --name before
changed() { # A B: blocks, one a word
  smctl vdi diff lane "$1" "$2" --json | python3 -c '
import json, sys
for r in json.load(sys.stdin):
    assert r["start"] % 65536 == 0
    for block in range(r["start"] // 65536, (r["start"] + r["length"] + 65535) // 65536): print(block)' | xargs
}
same "a snapshot and its disk" '' "$(changed before disk)"
write "$disk" 4 1
write "$disk" 300 3
blkdiscard --force --offset $(( 1024 * 65536 )) --length 65536 "$disk"
same "blocks written or discarded" '4 300 301 302 1024' "$(changed before disk)"
same "the same, the other way" '4 300 301 302 1024' "$(changed disk before)"
same "a template and the snapshot" "${blocks[*]}" "$(changed template before)"
refuses 3 smctl vdi diff lane plain disk
[[ $said == *'not the same template'* ]] || fail "$said"

# The tools say the same of the same two devices.
id=$(dmsetup table "$(name_of "$disk")" | awk '{ print $5 }')
dmsetup message "$pool" 0 reserve_metadata_snap
tool=$(thin_delta -m --snap1 "$id" --snap2 $(( id + 2 )) "/dev/mapper/${pool}_tmeta" |
  awk -F'"' '/_only|different/ { for (i = 0; i < $4; i++) print $2 + i }' | xargs)
same "thin_delta" '4 300 301 302 1024' "$tool"

dmsetup message "$pool" 0 release_metadata_snap

# A reader that is killed in the middle leaves the metadata snapshot held: it stops at its first read of the metadata,
# which is the only one that goes past the page cache.
cat >stop.c <<'C'
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>
ssize_t pread64(int fd, void *buffer, size_t length, off64_t offset) {
  if (fcntl(fd, F_GETFL) & O_DIRECT) pause();
  return syscall(SYS_pread64, fd, buffer, length, offset);
}
C
cc -shared -fPIC -o stop.so stop.c
reader_is_killed() {
  LD_PRELOAD=$work/stop.so smctl vdi map lane disk --no-cache >/dev/null 2>&1 &
  local reader=$!
  holds() { [[ $(held) != - ]]; }
  becomes_true holds
  kill -KILL $reader
  wait $reader || true
  holds
}
reader_is_killed
same "blocks while a dead reader's metadata snapshot is held" '4 300 301 302 1024' "$(changed before disk)"
same "the metadata snapshot after the next reader" - "$(held)"
reader_is_killed
smctl sr recover lane
same "the metadata snapshot after recovery" - "$(held)"

# Utilisation, attached and not; of all disks at once and of each.
now=$(used disk)
same "bytes that are used" "$(mapped "$disk")" "$now"
smctl vdi detach lane disk
disk_uses() { [[ $(used disk) == "$1" ]]; }
becomes_true disk_uses "$now"
same "an empty disk" 0 "$(used plain)"
for vdi in disk before plain template; do echo "$vdi $(used $vdi)"; done | sort >each
smctl vdi list lane --json | python3 -c '
import json, sys
for vdi in json.load(sys.stdin): print(vdi["name"], vdi["physical_utilisation"])' | sort >all
same "the list" "$(<each)" "$(<all)"
same "the sum" "$(awk '{ sum += $2 } END { print sum }' all)" "$(smctl sr info lane --json |
  python3 -c 'import json, sys; print(json.load(sys.stdin)["physical_allocation"])')"
smctl vdi map lane disk --json >map.json
disk=$(smctl vdi attach lane disk --read-only)
python3 check.py map.json template.json "$disk" 4 100 200 201 300 301 302 1022 1023 1025
smctl vdi detach lane disk

# What the cache holds is enough to tell a map without the server.
smctl vdi map lane disk --json >/dev/null
smctl sr destroy --force lane
becomes_true nothing_is_left

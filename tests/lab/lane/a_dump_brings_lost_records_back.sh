# The records of an SR are dumped, its volume of records is overwritten, and then removed: each time the dump brings every
# VDI back, with the bytes it had. A dump that does not fit the pool is refused, and the pool is left as it was. Meanwhile
# the list of SRs says what is wrong with this one, and tells of another as if nothing were.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

make_image template.qcow2 -c
serve_over_http "$work"
smctl sr create --name lane "$SCRATCH"
sr=$(smctl sr list --json | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["uuid"])')
smctl vdi introduce lane "$HTTP_URL/template.qcow2" --name template
# A location with a secret in it.
smctl vdi introduce lane "$HTTP_URL/template.qcow2?token=geheim" --name private
smctl vdi clone lane template --name disk
disk=$(smctl vdi attach lane disk)
dd if=/dev/urandom of="$disk" bs=64k seek=5 count=9 conv=fsync,notrunc status=none
smctl vdi snapshot lane disk --name snapshot
dd if=/dev/urandom of="$disk" bs=64k seek=9 count=9 conv=fsync,notrunc status=none
smctl vdi create lane --name plain --size 4M
smctl vdi clone lane private --name shown
digests() { # of every VDI that is not a template
  local vdi device
  for vdi in disk snapshot plain shown; do
    device=$(smctl vdi attach lane $vdi --read-only)
    echo "$vdi $(digest "$device")"
    smctl vdi detach lane $vdi
  done
}
smctl vdi detach lane disk
digests >before
smctl vdi list lane --json >listed
same "disks that read alike" 4 "$(cut -d ' ' -f 2 before | sort -u | wc -l)"

smctl sr dump lane early
smctl sr dump lane dump
same "a dump on stdout" "$(<dump)" "$(smctl sr dump lane)"
! grep -q geheim dump || fail "the dump has a secret in it"
private=$(smctl vdi info lane private --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["uuid"])')
whole=(--location "$private=$HTTP_URL/template.qcow2?token=geheim")

# Where there are records, they stay.
refuses 3 smctl sr restore dump
[[ $said == *"--location $private=LOCATION"* ]] || fail "$said"
smctl sr restore dump "${whole[@]}"
smctl vdi rename lane plain other
refuses 3 smctl sr restore dump "${whole[@]}"
[[ $said == *'nothing is restored over them'* ]] || fail "$said"
smctl vdi rename lane other plain

records=$(dmsetup ls | grep -- -meta)
records=/dev/mapper/${records%%[[:space:]]*}
pool=$(dmsetup ls --target thin-pool)
pool=${pool%%[[:space:]]*}
transaction() { dmsetup status "$pool" | cut -d ' ' -f 4; }
thins() { # the pool's devices, each with how much it has mapped
  dmsetup message "$pool" 0 reserve_metadata_snap
  thin_ls -m --no-headers -o DEV,MAPPED_BLOCKS "/dev/mapper/${pool}_tmeta" | xargs
  dmsetup message "$pool" 0 release_metadata_snap
}
damage() { # OFFSET LENGTH, in KiB
  dd if=/dev/urandom of="$records" bs=1k seek="$1" count="$2" conv=notrunc,fsync,nocreat status=none
}
all_is_back() {
  same "the list of VDIs" "$(<listed)" "$(smctl vdi list lane --json)"
  digests >after
  same "bytes of every VDI" "$(<before)" "$(<after)"
  same "transaction of the pool" "$had" "$(transaction)"
  same "thin devices of the pool" "$kept" "$(thins)"
}
had=$(transaction)
kept=$(thins)
truncate -s 300M other.disk
loop=$(losetup --find --show other.disk)
smctl sr create --name other "$loop"
is_told() { # STATE WORDS: so the list tells of this one, and the other is as ever
  local told
  told=$(smctl sr list --json | python3 -c '
import json, sys
for sr in sorted(json.load(sys.stdin), key=lambda sr: sr["name"]):
    print(sr["name"], sr["state"], sr["error"], *sr["warnings"], sep=": ")')
  [[ $told == "lane: $1: "*"$2"*$'\n''other: attached: None' ]] || fail "wanted '$1', '$2': $told"
  same "a list in words" 1 "$(smctl sr list 2>said | grep -c " lane  *$1 ")"
  same "who is in the tree" 'lane other' "$(smctl tree | sed -n 's/^\([a-z]*\) (SR.*/\1/p' | sort | xargs)"
}
is_told attached None

# One volume of two is active.
lvchange -q -a n "lane/smctl-$sr-pool"
is_told detached 'pool is not active'
smctl sr attach lane

# The records of a later version, which nobody writes over.
write_version() {
  python3 - "$records" "$1" <<'PY'
import struct, sys, zlib
with open(sys.argv[1], "r+b") as device:
    block = bytearray(device.read(4096))
    block[8:12] = struct.pack("<I", int(sys.argv[2]))
    block[28:32] = struct.pack("<I", zlib.crc32(block[:28]))
    device.seek(0)
    device.write(block)
PY
}
write_version 2
is_told unreadable 'the records have format version 2'
grep "smctl: warning: SR 'lane' is unreadable: the records have format version 2" said
refuses 3 smctl vdi list lane
refuses 3 smctl sr restore dump "${whole[@]}"
write_version 1
is_told attached None

# All of it overwritten; the first block alone; the records behind a good first block.
for part in '0 65536' '0 4' '1024 8192'; do
  # shellcheck disable=SC2086 # two words
  damage $part
  if smctl vdi list lane >/dev/null 2>said; then fail "damaged records were read: $part"; fi
  is_told unreadable ''
  smctl sr restore --dry-run dump "${whole[@]}" | grep -q 'write the records of 6 VDIs'
  smctl sr restore dump "${whole[@]}"
  all_is_back
done

# The volume itself is gone, and the SR is not attached.
smctl sr detach lane
lvremove -q -y "lane/smctl-$sr-meta"
smctl sr restore - "${whole[@]}" <dump
all_is_back

# A dump of another time does not fit: a device is missing, or there is one more. What there is stays.
smctl vdi clone lane disk --name new
smctl vdi destroy lane plain
kept=$(thins)
damage 0 65536
refuses 3 smctl sr restore dump "${whole[@]}"
[[ $said == *'lacks 1 of the'*"'plain'"* ]] || fail "$said"
sed -i 's/"thinorigin_sr_dump": 1/"thinorigin_sr_dump": 2/' early
refuses 3 smctl sr restore early
[[ $said == *'version 2'* ]] || fail "$said"
same "thin devices of the pool" "$kept" "$(thins)"
python3 - <<'PY'
import json
dump = json.load(open("dump"))
dump["vdis"] = [vdi for vdi in dump["vdis"] if vdi["name"] != "plain"]
json.dump(dump, open("dump", "w"))
PY
refuses 3 smctl sr restore dump "${whole[@]}"
[[ $said == *'1 thin devices that the dump does not know'*--leave-unknown* ]] || fail "$said"
smctl sr restore --leave-unknown dump "${whole[@]}"
same "thin devices of the pool" "$kept" "$(thins)"
disk=$(smctl vdi attach lane disk --read-only)
same "bytes of the disk" "$(grep '^disk ' before)" "disk $(digest "$disk")"
smctl vdi detach lane disk
# New devices go beside those that nobody knows.
smctl vdi create lane --name next --size 1M
# An SR without records can be given up, if somebody insists.
damage 0 4
refuses 3 smctl sr destroy lane
[[ $said == *'its pool may not be empty'* ]] || fail "$said"
smctl sr detach lane
smctl sr destroy --force lane
smctl sr destroy other
losetup --detach "$loop"
becomes_true nothing_is_left

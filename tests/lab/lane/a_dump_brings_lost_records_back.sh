# The records of an SR are dumped, its volume of records is overwritten, and then removed: each time the dump brings every
# VDI back, with the bytes it had. A dump that does not fit the pool is refused, and the pool is left as it was.
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

# All of it overwritten; the first block alone; the records behind a good first block.
for part in '0 65536' '0 4' '1024 8192'; do
  # shellcheck disable=SC2086 # two words
  damage $part
  if smctl vdi list lane >/dev/null 2>said; then fail "damaged records were read: $part"; fi
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
smctl sr destroy --force lane
becomes_true nothing_is_left

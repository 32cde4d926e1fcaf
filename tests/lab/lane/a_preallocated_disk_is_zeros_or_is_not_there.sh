# A preallocated disk is zeros from its first byte to its last, grows by zeros while it is used, and is refused what it
# cannot do. Interrupted or killed while it is made or grows, it leaves nothing, or is as it was.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

# A disk of 640 MiB full of other people's data. Its second half, where there are no records and no metadata, can be made
# slow: for writes, and not for flushes, of which each of the records would wait for that half.
slow() { # MILLISECONDS that each write takes there
  dmsetup suspend slow
  dmsetup load slow <<TABLE
0 655360 delay $SCRATCH 0 0 $SCRATCH 0 0
655360 655360 delay $SCRATCH 655360 0 $SCRATCH 655360 $1 $SCRATCH 655360 0
TABLE
  dmsetup resume slow
}
modprobe dm-delay
dmsetup create slow --table "0 1310720 delay $SCRATCH 0 0 $SCRATCH 0 0"
{ yes 'somebody else' || true; } 2>/dev/null | dd of=/dev/mapper/slow bs=1M count=640 iflag=fullblock oflag=direct status=none
disk=/dev/mapper/slow
lvm_on() { lvm "$@" --config 'devices { use_devicesfile=0 global_filter=["a|^/dev/dm-0$|","a|^/dev/mapper/slow$|","r|.*|"] }'; }
volumes() { lvm_on lvs --noheadings -o lv_name lane | grep -c -e -thick- || true; }
volume_size() { lvm_on lvs --noheadings --units b --nosuffix -o lv_size lane -S 'lv_name=~-thick-' | tr -d ' '; }
json() { # FIELD COMMAND...: the field of what the command prints, which is one JSON document
  local field=$1
  shift
  "$@" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$field"
}
names() { smctl vdi list lane --json | python3 -c 'import json, sys; print(*sorted(v["name"] for v in json.load(sys.stdin)))'; }
being_made() { (( $(volumes) == 2 )); }
growing() { (( $(volume_size) > 70 << 20 )); }
is_zero() { # DEVICE FROM TO, in bytes
  cmp -i "$2:0" -n $(( $3 - $2 )) "$1" /dev/zero
}

smctl sr create --name lane "$disk"
# What a volume holds that nobody zeroes: the test below would see it.
lvm_on lvcreate -q -y -W n -Z n -L 16M -n plain lane
! is_zero /dev/mapper/lane-plain 0 $(( 16 << 20 )) || fail "the disk was empty before"
lvm_on lvremove -q -y lane/plain

smctl vdi create lane --name big --size 32M --preallocate --dry-run >steps
same "steps of a dry run" 3 "$(wc -l <steps)"
same "volumes after a dry run" 0 "$(volumes)"
size=$(( (30 << 20) + 512 ))
uuid=$(json uuid smctl vdi create lane --name big --size $size --preallocate)
same "the kind" True "$(json preallocated smctl vdi info lane big)"
same "what it uses" $size "$(json physical_utilisation smctl vdi info lane big)"
big=$(smctl vdi attach lane big)
same "its size" $size "$(blockdev --getsize64 "$big")"
same "its map" "[[0, $size, 0, true, false, true]]" "$(smctl vdi map lane big --json | python3 -c '
import json, sys
print(json.dumps([[e[k] for k in ("start", "length", "depth", "present", "zero", "data")] for e in json.load(sys.stdin)]))')"
is_zero "$big" 0 $size
head -c $size /dev/urandom >bytes
dd if=bytes of="$big" bs=1M oflag=direct iflag=fullblock conv=fsync,notrunc status=none
smctl vdi rename lane big large
smctl vdi detach lane large
same "active volumes of a detached disk" 0 "$(dmsetup ls | grep -c -e -thick- || true)"
big=$(smctl vdi attach lane "$uuid")
cmp -n $size "$big" bytes

refuses 3 smctl vdi snapshot lane large
grep preallocated said
refuses 3 smctl vdi clone lane large
refuses 3 smctl vdi resize lane large 10M
refuses 3 smctl vdi destroy lane large
refuses 3 smctl vdi create lane --name huge --size 5G --preallocate
grep -F '5 GiB (5368709120 bytes)' said
grep -F 'vgextend lane' said
same "volumes" 1 "$(volumes)"

# It grows while it is used.
exec 3<>"$big"
smctl vdi resize lane large 64M
exec 3>&-
same "its size after it grew" $(( 64 << 20 )) "$(blockdev --getsize64 "$big")"
cmp -n $size "$big" bytes
is_zero "$big" $size $(( 64 << 20 ))

# Interrupted. Each write takes long, so that there is a middle.
slow 400
for signal in INT TERM; do
  smctl vdi create lane --name stopped --size 200M --preallocate 2>said &
  making=$!
  becomes_true being_made
  sleep 1
  # Others have the repository meanwhile, and cannot take it away.
  same "what is there while one is made" large "$(names)"
  refuses 3 smctl sr detach lane
  kill -$signal $making
  began=${EPOCHREALTIME/[.,]/}
  status=0
  wait $making || status=$?
  took=$(( ${EPOCHREALTIME/[.,]/} - began ))
  same "status after $signal" 1 $status
  echo "FACT $signal ends the making after $(( took / 1000 )) ms, with writes that take 400 ms"
  grep interrupted said
  same "volumes after $signal" 1 "$(volumes)"
  same "what is there after $signal" large "$(names)"

  smctl vdi resize lane large 200M &
  growing=$!
  becomes_true growing
  sleep 0.5
  kill -$signal $growing
  status=0
  wait $growing || status=$?
  same "status after $signal" 1 $status
  same "the volume after $signal" $(( 64 << 20 )) "$(volume_size)"
  same "the device after $signal" $(( 64 << 20 )) "$(blockdev --getsize64 "$big")"
done

# Killed: no half made disk is there, and the next command that changes something, or recovery, takes away what is left.
for next in 'vdi rename lane large large' 'sr recover lane'; do
  slow 400
  smctl vdi create lane --name killed --size 200M --preallocate &
  making=$!
  becomes_true being_made
  sleep 0.7
  kill -KILL $making
  wait $making || true
  slow 0
  same "what is there after a kill" large "$(names)"
  same "volumes after a kill" 2 "$(volumes)"
  # shellcheck disable=SC2086 # words
  smctl $next
  same "volumes after $next" 1 "$(volumes)"
done
slow 400
smctl vdi resize lane large 200M &
growing=$!
becomes_true growing
sleep 0.7
kill -KILL $growing
wait $growing || true
slow 0
same "the size after a kill" $(( 64 << 20 )) "$(json virtual_size smctl vdi info lane large)"
smctl sr recover lane
same "the volume after recovery" $(( 64 << 20 )) "$(volume_size)"
same "the device after recovery" $(( 64 << 20 )) "$(blockdev --getsize64 "$big")"
cmp -n $size "$big" bytes
# What was zeroed in part before is zeros now.
smctl vdi resize lane large 128M
is_zero "$big" $size $(( 128 << 20 ))

smctl vdi detach lane large
smctl vdi destroy lane large
same "volumes at the end" 0 "$(volumes)"
smctl sr destroy lane
dmsetup remove slow
becomes_true nothing_is_left

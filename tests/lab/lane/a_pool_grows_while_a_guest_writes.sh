# A pool that is smaller than what guests write grows under them. One that does not grow by itself
# fails writes at once when it is full, still reads, and goes on when it is grown.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

json() { # FIELD COMMAND...
  local field=$1
  shift
  "$@" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$field"
}
info() { json "$1" smctl sr info lane; }
pool_line() { dmsetup status "lane-${pool//-/--}"; }

smctl sr create --name lane --pool-size 128M "$SCRATCH"
same "growth by itself" True "$(info pool_grows)"
pool=$(info pool)
smctl vdi create lane --name disk --size 1G
disk=$(smctl vdi attach lane disk)
background watch smctl sr watch --interval 1
head -c 4M /dev/urandom >noise
# The guest waits where it would overtake the growth: how fast a pool grows is the machine's affair.
has_room_for_more() { # 8 MiB, in blocks of 64 KiB
  local used total
  IFS=' /' read -r _ _ _ _ _ _ used total _ < <(pool_line)
  (( total - used >= 8 << 4 ))
}
for (( at = 0; at < 400; at += 4 )); do
  dd if=noise of="$disk" bs=4M seek=$(( at / 4 )) count=1 oflag=direct conv=notrunc status=none
  within 60 has_room_for_more
done
for at in 0 30 60 99; do
  dd if="$disk" of=back bs=4M skip=$at count=1 iflag=direct status=none
  cmp noise back
done
grep 'grow the thin pool' watch.log
has_room() { (( $(info pool_size) >= 500 << 20 )); }
within 60 has_room
pool_line | grep -w rw | grep -w error_if_no_space
stop watch.pid
! grep warning watch.log || fail "there was nothing to warn of"
echo "FACT the pool grew $(grep -c 'grow the thin pool' watch.log) times from 128 MiB to $(( $(info pool_size) >> 20 )) MiB"

# Nobody grows it.
smctl sr grow lane --automatically no
same "growth by itself" False "$(info pool_grows)"
size=$(info pool_size)
head -c 4M /dev/urandom >other
began=$SECONDS
! dd if=/dev/urandom of="$disk" bs=4M seek=100 count=150 oflag=direct conv=notrunc iflag=fullblock status=none 2>said ||
  fail "more was written than there is room for"
(( SECONDS - began < 50 )) || fail "writes waited for room"
pool_line | grep -w out_of_data_space
smctl sr watch --once
same "the size of a pool that does not grow" "$size" "$(info pool_size)"
smctl sr info lane | grep 'is full'
smctl vdi create lane --name more --size 1M 2>said
grep 'warning: .*smctl sr grow lane' said
# What is mapped is read and written, new blocks are not.
dd if="$disk" of=back bs=4M skip=30 count=1 iflag=direct status=none
cmp noise back
dd if=other of="$disk" bs=4M seek=30 count=1 oflag=direct conv=notrunc status=none
! dd if=other of="$disk" bs=4M seek=255 count=1 oflag=direct conv=notrunc status=none 2>said || fail "written without room"
refuses 3 smctl sr grow lane --to 64M
refuses 3 smctl sr grow lane --to 1T
grep free said
smctl sr grow lane --to 1200M
pool_line | grep -w rw | grep -w error_if_no_space
dd if=other of="$disk" bs=4M seek=255 count=1 oflag=direct conv=notrunc status=none
for at in 30 255; do
  dd if="$disk" of=back bs=4M skip=$at count=1 iflag=direct status=none
  cmp other back
done
smctl vdi detach lane disk
smctl sr destroy lane --force
becomes_true nothing_is_left

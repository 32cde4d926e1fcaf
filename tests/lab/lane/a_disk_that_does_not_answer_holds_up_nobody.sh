# A local disk stops answering: who reads from it waits, nobody else does, and what the cache has there comes from the server.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

head -c 64M /dev/urandom >well.raw
serve_over_http "$work"
wanted=$(digest well.raw)

truncate -s 400M silent.img
loop=$(losetup --find --show silent.img)
dmsetup create silent --table "0 $(blockdev --getsz "$loop") linear $loop 0"
mke2fs -q -t ext4 -m 0 /dev/mapper/silent
mkdir silent
mount /dev/mapper/silent silent
cp well.raw silent/disk.raw

background serve thinorigin serve --unix "$work/nbd.sock" --cache "$work/silent/cache" \
  silent="$work/silent/disk.raw" well="$work/well.raw" cached="$HTTP_URL/well.raw"
becomes_true grep -q ^ready serve.log
uri() { echo "nbd+unix:///$1?socket=$work/nbd.sock"; }
nbdcopy "$(uri cached)" copy
sleep 2
sync
echo 3 >/proc/sys/vm/drop_caches
# Nothing that fails from here on leaves a kernel that cannot be stopped.
(sleep 100 && dmsetup resume silent) &
dmsetup suspend --noflush --nolockfs silent

# More readers than the server has threads, of both kinds of reads.
readers=()
for number in 1 2 3 4 5 6; do
  qemu-io -r -f raw -c "read $(( number * 5 ))M $(( number % 2 ? 4096 : 262144 ))" "$(uri silent)" >"reader$number.log" &
  readers+=($!)
done
sleep 1
timeout 10 nbdcopy "$(uri well)" copy || fail "a reader of another disk waits, too"
truncate -s 64M copy
same "bytes of another disk" "$wanted" "$(digest copy)"
for reader in "${readers[@]}"; do kill -0 "$reader" || fail "a reader did not wait: the disk answers"; done
timeout 15 qemu-img dd -f raw -O raw bs=64k count=2 "if=$(uri cached)" of=part || fail "the server is not asked instead"
same "bytes of what is cached there" "$(head -c 128K well.raw | sha256sum)" "$(sha256sum <part)"

dmsetup resume silent
for reader in "${readers[@]}"; do wait "$reader" || fail "a reader that waited got no answer"; done
grep -q '^read 262144/262144' reader2.log
nbdcopy "$(uri silent)" copy
truncate -s 64M copy
same "bytes of the disk that answers again" "$wanted" "$(digest copy)"
stop serve.pid
umount silent
dmsetup remove silent
losetup --detach "$loop"

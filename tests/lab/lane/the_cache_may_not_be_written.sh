# The disk under the cache takes no more, while there is more to be stored: what is written, or what is made durable, ends in
# an input/output error. Readers get the right bytes, the log says it once, and what is left on the disk is right.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"
# shellcheck source-path=SCRIPTDIR source=cachedisk
. "$(dirname "$0")/cachedisk"

modprobe dm-flakey
# Which system call is told: as a rule the one that makes things durable, and the one that writes where that does so at once. A
# journal would make the file system read-only before.
while read -r what options features told; do
  mke2fs -q -F -t ext4 -m 0 -O "$features" /dev/mapper/cachedisk
  mount -o "$options" /dev/mapper/cachedisk cache
  start_server
  for name in raw qcow2; do
    qemu-io -r -f raw -c "read 0 4M" "nbd+unix:///$name?socket=$work/nbd.sock" </dev/null
  done
  # What has been read is durable before the disk fails: the next server finds it.
  sleep 3
  sync
  same "warnings of a disk that is well ($what)" 0 "$(warnings)"
  becomes flakey "$loop" 0 0 3600 1 error_writes
  echo 3 >/proc/sys/vm/drop_caches
  began=$SECONDS
  read_all "nothing can be written ($what)"
  becomes_true grep -q "passes data through" serve.log
  grep "$told: Input/output error" serve.log
  # It is tried again after half a minute, and said again if that fails.
  (( SECONDS - began >= 30 )) || same "warnings ($what)" 1 "$(warnings)"
  # Nothing is kept that the page cache has and the disk does not.
  echo 3 >/proc/sys/vm/drop_caches
  read_all "nothing was written ($what)"
  stop serve.pid
  umount cache || umount -l cache

  mend
  mount /dev/mapper/cachedisk cache
  start_server
  grep -c . <(thinorigin cache list --json --cache "$work/cache/store" | grep '"local": [1-9]')
  read_all "the disk takes data again ($what)"
  same "warnings of a disk that is well again ($what)" 0 "$(warnings)"
  end
done <<'END'
fsync defaults has_journal cannot be made durable
write sync ^has_journal cannot be stored
END
remove_disk

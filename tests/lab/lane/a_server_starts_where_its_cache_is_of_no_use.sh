# A server is started while the file system of its cache is read-only, or its device fails: it says so, and serves what it can
# get without.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"
# shellcheck source-path=SCRIPTDIR source=cachedisk
. "$(dirname "$0")/cachedisk"

said() { grep WARN serve.log | grep -c "$work/cache/store" || true; }

# A cache that has a part of each image.
mount /dev/mapper/cachedisk cache
start_server
for name in raw qcow2; do
  qemu-io -r -f raw -c "read 0 4M" "nbd+unix:///$name?socket=$work/nbd.sock"
done
end

# Read-only, as after an error, or because somebody wants it so.
mount -o ro /dev/mapper/cachedisk cache
start_server
read_all "the cache is read-only"
(( $(said) >= 1 )) || fail "nothing is said of a cache that is read-only"
end

# Its device gives nothing. What the kernel had of it is forgotten first.
mount /dev/mapper/cachedisk cache
echo 3 >/proc/sys/vm/drop_caches
becomes error
start_server
read_all "the device of the cache fails"
(( $(said) >= 1 )) || fail "nothing is said of a cache whose device fails"
stop serve.pid
umount cache || umount -l cache

# Nor can a cache be made there.
mend
mount -o ro /dev/mapper/cachedisk cache
background serve thinorigin serve --unix "$work/nbd.sock" --cache "$work/cache/none/store" raw="$HTTP_URL/template.raw" \
  qcow2="$HTTP_URL/template.qcow2"
becomes_true grep -q ^ready serve.log
read_all "no cache can be made"
grep WARN serve.log | grep "$work/cache/none/store"
end

# And what it held is used again once all is well.
mount /dev/mapper/cachedisk cache
start_server
read_all "the disk is back"
same "warnings" 0 "$(said)"
end
remove_disk

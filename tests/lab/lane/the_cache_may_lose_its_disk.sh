# The disk under the cache is full, read-only, or fails: readers get the right bytes all the same, and the log says so once.
# shellcheck source-path=SCRIPTDIR source=prelude
. "$(dirname "$0")/prelude"

make_image template.qcow2 -c
qemu-img convert -O raw template.qcow2 template.raw
serve_over_http "$work"

# A file system of 160 MiB on a device that can be made to fail.
truncate -s 160M cache.img
loop=$(losetup --find --show cache.img)
sectors=$(blockdev --getsz "$loop")
dmsetup create cachedisk --table "0 $sectors linear $loop 0"
mke2fs -q -t ext4 -m 0 /dev/mapper/cachedisk
mkdir cache

read_all() { # WHAT: all exports give the right bytes, in small pieces and in large ones
  local name size
  for name in raw qcow2; do
    for size in 4096 262144; do
      nbdcopy --request-size $size "nbd+unix:///$name?socket=$work/nbd.sock" copy
      truncate -s 64M copy
      same "bytes of $name when $1" "$wanted" "$(digest copy)"
    done
  done
}
wanted=$(digest template.raw)
warnings() { grep -c "passes data through" serve.log || true; }
serve() { # [FREE]: with an empty cache, and FREE MiB for it where that is said
  local available
  mount /dev/mapper/cachedisk cache
  rm -rf cache/store cache/filler
  if (( $# )); then
    available=$(df --output=avail -BM cache | tail -n 1)
    fallocate -l "$(( ${available//[!0-9]/} - $1 ))M" cache/filler
  fi
  background serve thinorigin serve --unix "$work/nbd.sock" --cache "$work/cache/store" --cache-size 1G \
    raw="$HTTP_URL/template.raw" qcow2="$HTTP_URL/template.qcow2"
  becomes_true grep -q ^ready serve.log
}
end() {
  stop serve.pid
  umount cache
}

# Full: there is room for a part.
serve 8
read_all "the disk is full"
same "warnings" 1 "$(warnings)"
end

# Read-only from one moment to the next, as ext4 does after an error.
serve
nbdcopy "nbd+unix:///qcow2?socket=$work/nbd.sock" copy
mount -o remount,abort cache
read_all "the disk is read-only"
same "warnings" 1 "$(warnings)"
end

# Gone: every access is an error, that of what was cached as well.
serve
read_all "all is well"
same "warnings" 0 "$(warnings)"
sync cache/store/lock
dmsetup suspend --nolockfs cachedisk
dmsetup load cachedisk --table "0 $sectors error"
dmsetup resume cachedisk
echo 3 >/proc/sys/vm/drop_caches
read_all "the disk is gone"
(( $(warnings) >= 1 ))
stop serve.pid
umount cache || umount -l cache

# Back again, in whatever state: nothing wrong is served from it.
dmsetup suspend --nolockfs cachedisk
dmsetup load cachedisk --table "0 $sectors linear $loop 0"
dmsetup resume cachedisk
e2fsck -fy /dev/mapper/cachedisk >fsck.log || (( $? < 4 ))
mount /dev/mapper/cachedisk cache
background serve thinorigin serve --unix "$work/nbd.sock" --cache "$work/cache/store" \
  raw="$HTTP_URL/template.raw" qcow2="$HTTP_URL/template.qcow2"
becomes_true grep -q ^ready serve.log
read_all "the disk is back"
end
dmsetup remove cachedisk
losetup --detach "$loop"

#!/bin/busybox sh
# First program of the lab: the machine's root, read-only, under an overlay in memory.
# /words sets RELEASE, MODULES (folder in the root) and, as arguments, the program to become.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
stop() { echo "lab: $*" >/dev/console; poweroff -f; }
. /words
while read -r module; do insmod "$module" || stop "cannot load $module"; done </order
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose,access=client root /lower || stop "no root"
mount -t tmpfs -o size=75% rw /rw
mkdir /rw/up /rw/work /rw/new
new=/rw/new
mount -t overlay -o lowerdir=/lower,upperdir=/rw/up,workdir=/rw/work,xino=off,index=off,metacopy=off root $new ||
    stop "no overlay"
for folder in proc sys dev; do mount --move /$folder $new/$folder; done
mkdir -p $new/dev/pts $new/dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts $new/dev/pts
mount -t tmpfs shm $new/dev/shm
mount -t tmpfs -o mode=755 run $new/run
mount -t cgroup2 cgroup2 $new/sys/fs/cgroup
ln -sf /proc/self/fd $new/dev/fd
mkdir -p $new/run/netns $new/run/lock "$new/lib/modules/$RELEASE"
mount --bind "$new$MODULES" "$new/lib/modules/$RELEASE"
hostname lab
ifconfig lo up
exec switch_root $new "$@" </dev/console >/dev/console 2>&1

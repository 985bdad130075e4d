package host

import (
	"encoding/binary"
	"math"
)

// superblockBytes is how much of a device's start holds the superblocks below.
const superblockBytes = 68 << 10

// parseSuperblock finds one of our filesystems at the start of a device, and its
// size in bytes. It is what grow decisions need and blkid doesn't tell.
//
//	type   where     magic            size
//	xfs    0         "XFSB"           be32 block size at 4, be64 data blocks at 8
//	ext4   1024      le16 0xEF53 @56  le32 blocks at 4 (high half at 336 with
//	                                  the 64bit feature), block size 1024<<le32@24
//	btrfs  65536     "_BHRfS_M" @64   le64 bytes of this device at 0xD1
//
// A filesystem that mkfs has not finished is not recognised: mkfs.xfs sets
// sb_inprogress (byte 126) until its end, mkfs.btrfs uses another magic, and
// mkfs.ext4 writes the primary superblock last.
func parseSuperblock(b []byte) (fsType string, sizeBytes int64) {
	if len(b) < superblockBytes {
		return "", 0
	}
	if string(b[:4]) == "XFSB" && b[126] == 0 {
		size, ok := multiply(binary.BigEndian.Uint64(b[8:]), uint64(binary.BigEndian.Uint32(b[4:])))
		if ok {
			return "xfs", size
		}
	}
	if bt := b[64<<10:]; string(bt[64:72]) == "_BHRfS_M" {
		size, ok := multiply(binary.LittleEndian.Uint64(bt[0xD1:]), 1)
		if ok {
			return "btrfs", size
		}
	}
	return parseExt(b[1024:2048])
}

const (
	extIncompatExtents = 0x0040
	extIncompat64bit   = 0x0080
)

func parseExt(b []byte) (fsType string, sizeBytes int64) {
	shift := binary.LittleEndian.Uint32(b[24:])
	incompat := binary.LittleEndian.Uint32(b[96:])
	if binary.LittleEndian.Uint16(b[56:]) != 0xEF53 || shift > 6 || incompat&extIncompatExtents == 0 {
		return "", 0
	}
	blocks := uint64(binary.LittleEndian.Uint32(b[4:]))
	if incompat&extIncompat64bit != 0 {
		blocks |= uint64(binary.LittleEndian.Uint32(b[336:])) << 32
	}
	size, ok := multiply(blocks, 1024<<shift)
	if !ok {
		return "", 0
	}
	return "ext4", size
}

func multiply(a, b uint64) (int64, bool) {
	if a == 0 || b == 0 || a > math.MaxInt64/b {
		return 0, false
	}
	return int64(a * b), true
}

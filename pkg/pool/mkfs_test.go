package pool

import (
	"strings"
	"testing"
)

func TestXFSArgsNameOnlyWhatMkfsKnows(t *testing.T) {
	tests := []struct{ name, usage, want string }{
		{
			"xfsprogs 5.0", "[-m crc=0|1,finobt=0|1,uuid=xxx,rmapbt=0|1,reflink=0|1]",
			"-q -K -s size=4096 -m crc=1,finobt=1,reflink=1,rmapbt=0 -i sparse=1",
		},
		{
			"xfsprogs 6.1", "inobtcount=0|1,bigtime=0|1] sparse=0|1,nrext64=0|1]",
			"-q -K -s size=4096 -m crc=1,finobt=1,reflink=1,rmapbt=0,bigtime=1,inobtcount=1 -i sparse=1,nrext64=0",
		},
		{
			"xfsprogs 6.12", "bigtime=0|1 nrext64=0|1,exchange=0|1] ftype=0|1,parent=0|1]",
			"-q -K -s size=4096 -m crc=1,finobt=1,reflink=1,rmapbt=0,bigtime=1,inobtcount=1 -i sparse=1,nrext64=0,exchange=0 -n parent=0",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := strings.Join(xfsArgs(tt.usage), " "); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

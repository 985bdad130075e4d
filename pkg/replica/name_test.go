package replica

import (
	"errors"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// FuzzParseName: each name has one text, and each text that is accepted names
// valid things.
func FuzzParseName(f *testing.F) {
	id, u := string(vol), string(uid(1))
	for _, s := range []string{
		u, id + "/" + u + "/1/1", id + "/" + u + "/18446744073709551615/4294967295",
		"", id, u + "/1/1", id + "/" + u + "/0/1", id + "/" + u + "/1/0", id + "/" + u + "/01/1", id + "/" + u + "/+1/1",
		id + "/" + u + "/1/4294967296", id + "/" + u + "/1/1/", id + "/" + u + "/-1/1", "../" + u, id + "/../1/1", id + "/" + u + "/1/1\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseName(s)
		if err != nil {
			if !errors.Is(err, volume.ErrInvalid) || n != (Name{}) {
				t.Errorf("%q: %+v, %v; want ErrInvalid", s, n, err)
			}
			return
		}
		if n.String() != s {
			t.Errorf("%q comes back as %q", s, n)
		}
		view := n.Epoch == 0 && n.Session == 0 && n.Volume == ""
		session := n.Epoch > 0 && n.Session > 0 && n.Volume.Validate() == nil
		if n.UID.Validate() != nil || view == session {
			t.Errorf("%q gives %+v", s, n)
		}
	})
}

// FuzzNameRoundTrip: every session's name is read back.
func FuzzNameRoundTrip(f *testing.F) {
	f.Add("v", uint64(1), uint32(1))
	f.Add("w", ^uint64(0), ^uint32(0))
	f.Fuzz(func(t *testing.T, name string, epoch uint64, session uint32) {
		n := Name{Volume: volume.IDFor(name), UID: uid(1), Epoch: volume.Epoch(max(epoch, 1)), Session: volume.Session(max(session, 1))}
		if got, err := ParseName(n.String()); err != nil || got != n {
			t.Errorf("%+v comes back as %+v, %v", n, got, err)
		}
	})
}

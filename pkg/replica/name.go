package replica

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Name is an NBD export name of the replica server. Its text form is
// "VOLUME-ID/UID/EPOCH/SESSION": the session that OpenReplica made. A name that
// is only "UID" (Epoch 0) gives a read-only view that fences nobody, for
// inspection by any NBD client.
type Name struct {
	Volume  volume.ID
	UID     volume.UID
	Epoch   volume.Epoch
	Session volume.Session
}

// String renders the name.
func (n Name) String() string {
	if n.Epoch == 0 {
		return string(n.UID)
	}
	return fmt.Sprintf("%s/%s/%d/%d", n.Volume, n.UID, n.Epoch, n.Session)
}

// ParseName reads what String wrote; anything else is ErrInvalid.
func ParseName(s string) (Name, error) {
	bad := volume.Invalid("export name", s, "VOLUME-ID/UID/EPOCH/SESSION, or a UID alone for a read-only view")
	parts := strings.Split(s, "/")
	if len(parts) == 1 {
		n := Name{UID: volume.UID(s)}
		if n.UID.Validate() != nil {
			return Name{}, bad
		}
		return n, nil
	}
	if len(parts) != 4 {
		return Name{}, bad
	}
	n := Name{Volume: volume.ID(parts[0]), UID: volume.UID(parts[1])}
	epoch, err1 := strconv.ParseUint(parts[2], 10, 64)
	session, err2 := strconv.ParseUint(parts[3], 10, 32)
	if err1 != nil || err2 != nil || epoch == 0 || session == 0 || n.Volume.Validate() != nil || n.UID.Validate() != nil {
		return Name{}, bad
	}
	n.Epoch, n.Session = volume.Epoch(epoch), volume.Session(session)
	if n.String() != s { // no leading zeroes or signs: one session, one name
		return Name{}, bad
	}
	return n, nil
}

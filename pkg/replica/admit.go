package replica

import (
	"github.com/holdfast-csi/holdfast/pkg/mutant"
	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Opening is who opens a replica: an epoch, a session within it, and who has
// them: the node of the mirror and the nonce with which that took the epoch. A
// store that was set back gives an epoch a second time, even to the same node;
// only the nonce tells.
type Opening struct {
	Epoch   volume.Epoch
	Session volume.Session
	Holder  volume.NodeID
	Nonce   string
}

// Admission is what an opening is to a replica that remembers another one.
type Admission uint8

// The admissions.
const (
	// Older is refused: a newer epoch or session was seen, or the same epoch of
	// another holder.
	Older Admission = iota
	// Newer is let in; what was seen before is fenced.
	Newer
	// Again is the very one that was seen last.
	Again
)

// Unopened is what a replica has seen that is made in an epoch of its volume. It
// may take the place of one on the same node that saw that epoch: whoever was
// overtaken before finds the new one as closed as the old.
func Unopened(made volume.Epoch) Opening {
	if mutant.On("made-without-epoch") {
		return Opening{}
	}
	return Opening{Epoch: made}
}

// Admit is the fence: it compares an opening with the highest one seen. It is
// pure, so that the explorer and the simulator decide by it too.
func Admit(seen, asked Opening) Admission {
	switch {
	case asked.Epoch > seen.Epoch, mutant.On("accept-lower-epoch"):
		return Newer
	case asked.Epoch < seen.Epoch, asked.Session < seen.Session:
		return Older
	case seen.Session == 0: // made in this epoch, which any mirror may have
		return Newer
	case asked.Holder != seen.Holder, asked.Nonce != seen.Nonce: // an epoch has one holder, and is taken once
		return Older
	case asked.Session > seen.Session:
		return Newer
	}
	return Again
}

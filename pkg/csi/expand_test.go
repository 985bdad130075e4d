package csi

import (
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func TestControllerExpandVolume(t *testing.T) {
	const gib = 1 << 30
	tests := map[string]struct {
		required, limit int64
		capability      *csipb.VolumeCapability
		want            int64
		code            codes.Code
	}{
		"larger":                 {2 * gib, 0, nil, 2 * gib, codes.OK},
		"odd":                    {2*gib - 1, 0, nil, 2 * gib, codes.OK},
		"same":                   {gib, 0, mountCap("xfs"), gib, codes.OK},
		"smaller stays":          {1, 0, nil, gib, codes.OK},
		"limit only":             {0, 2 * gib, nil, gib, codes.OK},
		"limit below its size":   {0, gib - 4096, nil, 0, codes.OutOfRange},
		"nothing asked":          {0, 0, nil, 0, codes.InvalidArgument},
		"negative":               {-1, 0, nil, 0, codes.InvalidArgument},
		"limit below required":   {2 * gib, gib, nil, 0, codes.InvalidArgument},
		"no unit in between":     {gib + 1, gib + 2, nil, 0, codes.OutOfRange},
		"too large":              {1<<63 - 1, 0, nil, 0, codes.OutOfRange},
		"as a block device":      {2 * gib, 0, blockCap(), 0, codes.InvalidArgument},
		"for many nodes":         {2 * gib, 0, inMode(mountCap(""), csipb.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER), 0, codes.InvalidArgument},
		"with another fs":        {2 * gib, 0, mountCap("ext4"), 0, codes.InvalidArgument},
		"exact and a whole unit": {2 * gib, 2 * gib, nil, 2 * gib, codes.OK},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := NewController(newFakeProvisioner())
			v, err := c.CreateVolume(t.Context(), createRequest("volume", nil))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := c.ControllerExpandVolume(t.Context(), &csipb.ControllerExpandVolumeRequest{
				VolumeId: v.GetVolume().GetVolumeId(), VolumeCapability: test.capability,
				CapacityRange: &csipb.CapacityRange{RequiredBytes: test.required, LimitBytes: test.limit},
			})
			if codeOf(err) != test.code || resp.GetCapacityBytes() != test.want {
				t.Errorf("%v, %v; want %d, %s", resp, err, test.want, test.code)
			}
			if err == nil && !resp.GetNodeExpansionRequired() {
				t.Error("a filesystem needs the node's help to grow")
			}
		})
	}
}

func TestExpandOfABlockVolumeNeedsTheNodeOnlyWhileHeld(t *testing.T) {
	fake := newFakeProvisioner()
	c := NewController(fake)
	resp, err := c.CreateVolume(t.Context(), createRequest("v", func(r *csipb.CreateVolumeRequest) {
		r.VolumeCapabilities = []*csipb.VolumeCapability{blockCap()}
	}))
	if err != nil {
		t.Fatal(err)
	}
	id := volume.ID(resp.GetVolume().GetVolumeId())
	for _, holder := range []*volume.Holder{nil, {Node: "node-1"}} {
		v := fake.volumes[id]
		v.Status.Holder = holder
		fake.volumes[id] = v
		got, err := c.ControllerExpandVolume(t.Context(), &csipb.ControllerExpandVolumeRequest{
			VolumeId: string(id), CapacityRange: &csipb.CapacityRange{RequiredBytes: 2 << 30},
		})
		if err != nil || got.GetNodeExpansionRequired() != (holder != nil) {
			t.Errorf("holder %v: %v, %v", holder, got, err)
		}
	}
}

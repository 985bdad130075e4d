package csi

import (
	"strings"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func TestControllerModifyVolume(t *testing.T) {
	strict := map[string]string{"locality": "strict", "replicas": "2"}
	tests := map[string]struct {
		params, mutable map[string]string
		want            int
		code            codes.Code
		says            string
	}{
		"more":               {nil, map[string]string{"replicas": "3"}, 3, codes.OK, ""},
		"fewer":              {nil, map[string]string{"replicas": "1"}, 1, codes.OK, ""},
		"as it is":           {nil, map[string]string{"replicas": "2"}, 2, codes.OK, ""},
		"nothing":            {nil, nil, 2, codes.InvalidArgument, "mutable_parameters"},
		"none":               {nil, map[string]string{"replicas": "0"}, 2, codes.InvalidArgument, "from 1 to 5"},
		"too many":           {nil, map[string]string{"replicas": "6"}, 2, codes.InvalidArgument, "from 1 to 5"},
		"no number":          {nil, map[string]string{"replicas": "two"}, 2, codes.InvalidArgument, "mutable_parameters.replicas"},
		"unknown":            {nil, map[string]string{"replica": "3"}, 2, codes.InvalidArgument, "one of replicas"},
		"one of them known":  {nil, map[string]string{"replicas": "3", "speed": "high"}, 2, codes.InvalidArgument, "one of replicas"},
		"immutable":          {nil, map[string]string{"cacheMode": "none"}, 2, codes.InvalidArgument, "one of replicas"},
		"more, but strict":   {strict, map[string]string{"replicas": "3"}, 2, codes.InvalidArgument, "locality strict"},
		"fewer of strict":    {strict, map[string]string{"replicas": "1"}, 1, codes.OK, ""},
		"of the kernel's":    {map[string]string{"locality": "strict", "replicas": "1"}, map[string]string{"replicas": "2"}, 1, codes.InvalidArgument, "single local replica"},
		"of the Kubernetes'": {nil, map[string]string{"csi.storage.k8s.io/x": "2"}, 2, codes.InvalidArgument, "one of replicas"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			fake := newFakeProvisioner()
			c := NewController(fake)
			made, err := c.CreateVolume(t.Context(), createRequest("volume", func(r *csipb.CreateVolumeRequest) { r.Parameters = test.params }))
			if err != nil {
				t.Fatal(err)
			}
			id := made.GetVolume().GetVolumeId()
			_, err = c.ControllerModifyVolume(t.Context(), &csipb.ControllerModifyVolumeRequest{VolumeId: id, MutableParameters: test.mutable})
			if codeOf(err) != test.code || err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("%v, want %s with %q", err, test.code, test.says)
			}
			v := fake.volumes[volume.ID(id)]
			if n := v.Spec.WantedReplicas(); n != test.want {
				t.Errorf("%d replicas are wanted, not %d", n, test.want)
			}
			// Asked for once more it is still the volume of that name.
			if _, err := c.CreateVolume(t.Context(), createRequest("volume", func(r *csipb.CreateVolumeRequest) { r.Parameters = test.params })); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestModifyWhatIsNot(t *testing.T) {
	c := NewController(newFakeProvisioner())
	for id, want := range map[string]codes.Code{
		"": codes.InvalidArgument, "nonsense": codes.NotFound, string(volume.IDFor("x")): codes.NotFound,
	} {
		req := &csipb.ControllerModifyVolumeRequest{VolumeId: id, MutableParameters: map[string]string{"replicas": "3"}}
		if _, err := c.ControllerModifyVolume(t.Context(), req); codeOf(err) != want {
			t.Errorf("volume %q: %v, want %s", id, err, want)
		}
	}
}

// The mutable parameters of a VolumeAttributesClass take precedence over those of
// the StorageClass.
func TestCreateWithMutableParameters(t *testing.T) {
	fake := newFakeProvisioner()
	req := createRequest("volume", func(r *csipb.CreateVolumeRequest) {
		r.Parameters, r.MutableParameters = map[string]string{"replicas": "2"}, map[string]string{"replicas": "3"}
	})
	for range 2 { // the second time it is there
		if _, err := NewController(fake).CreateVolume(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	if n := fake.created.Spec.Params.Replicas; n != 3 {
		t.Errorf("%d replicas", n)
	}
}

package csi

import (
	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// segments checks topologies and takes them out of their messages.
func segments(field string, list []*csipb.Topology) ([]map[string]string, error) {
	var out []map[string]string
	for _, t := range list {
		if len(t.GetSegments()) == 0 {
			return nil, volume.Invalid(field, "", "a list of topologies with at least one segment each")
		}
		for key, value := range t.GetSegments() {
			if !validTopologyKey(key) || !namePattern.MatchString(value) {
				return nil, volume.Invalid(field, key+"="+value, "a topology key and its value")
			}
		}
		out = append(out, t.GetSegments())
	}
	return out, nil
}

func topologies(list []map[string]string) []*csipb.Topology {
	var out []*csipb.Topology
	for _, s := range list {
		out = append(out, &csipb.Topology{Segments: s})
	}
	return out
}

package csi

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// Parameter is one StorageClass parameter.
type Parameter struct {
	Name    string
	Default string
	Allowed string // as a phrase, for errors and the documentation
	Meaning string
	Mutable bool                                      // also of a volume that exists
	set     func(p *volume.Params, value string) bool // false: not allowed
}

// Parameters is the table of all StorageClass parameters. docs/storageclass.md
// shows it; a test holds the two together.
var Parameters = []Parameter{
	{
		Name: "replicas", Default: "2", Allowed: "a whole number from 1 to 5", Mutable: true,
		Meaning: "Full copies of the volume, each on another node. With 2 the data survives the loss of one node.",
		set: func(p *volume.Params, value string) bool {
			n, err := strconv.Atoi(value)
			p.Replicas = n
			return err == nil && n >= 1 && n <= 5 && strconv.Itoa(n) == value
		},
	},
	{
		Name: "spread", Default: "", Allowed: "a topology key, such as topology.kubernetes.io/zone, or empty",
		Meaning: "Replicas must differ in this topology key. Empty: in the node.",
		set: func(p *volume.Params, value string) bool {
			p.Spread = value
			return value == "" || validTopologyKey(value)
		},
	},
	{
		Name: "locality", Default: string(volume.LocalityPreferred), Allowed: "preferred or strict",
		Meaning: "`preferred`: the volume can be used from any node, one with a replica is quicker. `strict`: only from the nodes of " +
			"its replicas; with one replica the volume is then a bare loop device on its image, and its whole size is set aside in the pool.",
		set: func(p *volume.Params, value string) bool {
			p.Locality = volume.Locality(value)
			return p.Locality == volume.LocalityPreferred || p.Locality == volume.LocalityStrict
		},
	},
	{
		Name: "mkfsOptions", Default: "", Allowed: "options of mkfs for the volume's filesystem, without paths or devices",
		Meaning: "More options for mkfs.xfs, mkfs.ext4 or mkfs.btrfs, separated by blanks; quotes work as in a shell. Not used for block volumes.",
		set: func(p *volume.Params, value string) bool {
			p.MkfsOptions = value
			_, err := splitWords(value)
			return err == nil
		},
	},
	{
		Name: "cacheMode", Default: string(volume.CacheWriteback), Allowed: "writeback or none",
		Meaning: "`writeback`: replicas write through the page cache, and a flush makes it durable, as on any disk with a write cache. " +
			"`none`: replicas bypass the page cache.",
		set: func(p *volume.Params, value string) bool {
			p.CacheMode = volume.CacheMode(value)
			return p.CacheMode == volume.CacheWriteback || p.CacheMode == volume.CacheNone
		},
	},
	{
		Name: "pool", Default: "", Allowed: "the name of a pool, " + volume.PoolNameAllowed + "; or empty",
		Meaning: "Use only pools of this name. Empty: any pool.",
		set: func(p *volume.Params, value string) bool {
			p.PoolSelector = value
			return value == "" || volume.ValidatePoolName("parameters.pool", value) == nil
		},
	},
}

// kubernetesPrefix marks the parameters with which the external-provisioner
// tells about the claim. They are not ours, and ignored.
const kubernetesPrefix = "csi.storage.k8s.io/"

var (
	namePattern   = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)
	prefixPattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$`)
)

// validTopologyKey applies the specification's rule for topology keys.
func validTopologyKey(key string) bool {
	prefix, name, found := strings.Cut(key, "/")
	if !found {
		return namePattern.MatchString(key)
	}
	return prefixPattern.MatchString(prefix) && namePattern.MatchString(name)
}

// ParseParams checks StorageClass parameters and fills in the defaults. An
// unknown one is ErrInvalid, with the known ones listed.
func ParseParams(given map[string]string) (volume.Params, error) {
	names := make([]string, 0, len(Parameters))
	for _, p := range Parameters {
		names = append(names, p.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if !slices.Contains(names, name) && !strings.HasPrefix(name, kubernetesPrefix) {
			return volume.Params{}, volume.Invalid("parameters", name, "one of "+strings.Join(names, ", "))
		}
	}
	var params volume.Params
	for _, p := range Parameters {
		value, set := given[p.Name]
		if !set {
			value = p.Default
		}
		if !p.set(&params, value) {
			return volume.Params{}, volume.Invalid("parameters."+p.Name, value, p.Allowed)
		}
	}
	return params, nil
}

// ParameterTable is the table as Markdown.
func ParameterTable() string {
	var b strings.Builder
	b.WriteString("| Parameter | Default | Allowed | Can be changed | Meaning |\n|---|---|---|---|---|\n")
	for _, p := range Parameters {
		value := "(empty)"
		if p.Default != "" {
			value = "`" + p.Default + "`"
		}
		change := "no"
		if p.Mutable {
			change = "yes"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", p.Name, value, p.Allowed, change, p.Meaning)
	}
	return b.String()
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

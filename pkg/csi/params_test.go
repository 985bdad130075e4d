package csi

import (
	"errors"
	"strings"
	"testing"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

func TestParseParams(t *testing.T) {
	defaults := volume.Params{Replicas: 2, Locality: volume.LocalityPreferred, CacheMode: volume.CacheWriteback}
	with := func(change func(*volume.Params)) volume.Params {
		p := defaults
		change(&p)
		return p
	}
	tests := map[string]struct {
		given   map[string]string
		want    volume.Params
		refused string // part of the error
	}{
		"nothing":             {given: nil, want: defaults},
		"replicas":            {given: map[string]string{"replicas": "5"}, want: with(func(p *volume.Params) { p.Replicas = 5 })},
		"spread":              {given: map[string]string{"spread": "topology.kubernetes.io/zone"}, want: with(func(p *volume.Params) { p.Spread = "topology.kubernetes.io/zone" })},
		"spread, empty":       {given: map[string]string{"spread": ""}, want: defaults},
		"strict":              {given: map[string]string{"locality": "strict"}, want: with(func(p *volume.Params) { p.Locality = volume.LocalityStrict })},
		"no cache":            {given: map[string]string{"cacheMode": "none"}, want: with(func(p *volume.Params) { p.CacheMode = volume.CacheNone })},
		"pool":                {given: map[string]string{"pool": "nvme-1"}, want: with(func(p *volume.Params) { p.PoolSelector = "nvme-1" })},
		"mkfs options":        {given: map[string]string{"mkfsOptions": `-L "my data"`}, want: with(func(p *volume.Params) { p.MkfsOptions = `-L "my data"` })},
		"kubernetes' own":     {given: map[string]string{"csi.storage.k8s.io/pvc/name": "claim"}, want: defaults},
		"unknown":             {given: map[string]string{"replica": "3"}, refused: `"replica" is not allowed: must be one of replicas, spread, locality, mkfsOptions, cacheMode, pool`},
		"wrong case":          {given: map[string]string{"Replicas": "3"}, refused: `"Replicas"`},
		"replicas, 0":         {given: map[string]string{"replicas": "0"}, refused: "parameters.replicas"},
		"replicas, 6":         {given: map[string]string{"replicas": "6"}, refused: "parameters.replicas"},
		"replicas, negative":  {given: map[string]string{"replicas": "-1"}, refused: "parameters.replicas"},
		"replicas, empty":     {given: map[string]string{"replicas": ""}, refused: "parameters.replicas"},
		"replicas, +3":        {given: map[string]string{"replicas": "+3"}, refused: "parameters.replicas"},
		"replicas, a word":    {given: map[string]string{"replicas": "three"}, refused: "a whole number from 1 to 5"},
		"replicas, huge":      {given: map[string]string{"replicas": "99999999999999999999"}, refused: "parameters.replicas"},
		"spread, no key":      {given: map[string]string{"spread": "zone/"}, refused: "parameters.spread"},
		"spread, two slashes": {given: map[string]string{"spread": "a/b/c"}, refused: "parameters.spread"},
		"locality, unknown":   {given: map[string]string{"locality": "local"}, refused: "preferred or strict"},
		"locality, empty":     {given: map[string]string{"locality": ""}, refused: "parameters.locality"},
		"cacheMode, unknown":  {given: map[string]string{"cacheMode": "writethrough"}, refused: "writeback or none"},
		"pool, a path":        {given: map[string]string{"pool": "../pool"}, refused: "parameters.pool"},
		"pool, no label":      {given: map[string]string{"pool": "nvme.1"}, refused: volume.PoolNameAllowed},
		"pool, upper case":    {given: map[string]string{"pool": "NVMe"}, refused: "parameters.pool"},
		"pool, too long":      {given: map[string]string{"pool": strings.Repeat("p", 64)}, refused: "parameters.pool"},
		"mkfs, open quote":    {given: map[string]string{"mkfsOptions": `-L "x`}, refused: "parameters.mkfsOptions"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParseParams(test.given)
			if test.refused != "" {
				if !errors.Is(err, volume.ErrInvalid) || !strings.Contains(err.Error(), test.refused) {
					t.Errorf("error %v, want ErrInvalid with %q", err, test.refused)
				}
				return
			}
			if err != nil || got != test.want {
				t.Errorf("%+v, %v; want %+v", got, err, test.want)
			}
		})
	}
}

func TestParseMkfsOptions(t *testing.T) {
	tests := map[string]struct {
		fsType, text string
		want         string // joined with |
		refused      bool
	}{
		"nothing":              {"xfs", "", "", false},
		"blanks":               {"xfs", " \t ", "", false},
		"value apart":          {"xfs", "-b size=1024", "-b|size=1024", false},
		"value attached":       {"xfs", "-bsize=1024 -K", "-b|size=1024|-K", false},
		"quotes":               {"ext4", `-L 'my data' -m "1"`, "-L|my data|-m|1", false},
		"backslash":            {"ext4", `-L my\ data`, "-L|my data", false},
		"long option":          {"btrfs", "--nodesize=16k --csum xxhash -M", "--nodesize|16k|--csum|xxhash|-M", false},
		"no shell":             {"ext4", "-L $(reboot);x`y`", "-L|$(reboot);x`y`", false},
		"a device":             {"xfs", "/dev/sda", "", true},
		"a device after":       {"xfs", "-K /dev/sda", "", true},
		"a size":               {"ext4", "-m 0 4096", "", true},
		"external log":         {"xfs", "-l logdev=sdb,size=10000b", "", true},
		"external log path":    {"xfs", "-l logdev=/dev/sdb", "", true},
		"realtime device":      {"xfs", "-r rtdev=/dev/sdb", "", true},
		"data file":            {"xfs", "-d file,name=x,size=1g", "", true},
		"prototype file":       {"xfs", "-p proto", "", true},
		"config file":          {"xfs", "-c options=file", "", true},
		"dry run":              {"xfs", "-N", "", true},
		"force":                {"xfs", "-f", "", true},
		"ext4 journal device":  {"ext4", "-J device=LABEL", "", true},
		"ext4 journal size":    {"ext4", "-J size=8", "-J|size=8", false},
		"ext4 as a journal":    {"ext4", "-O journal_dev", "", true},
		"ext4 dry run":         {"ext4", "-n", "", true},
		"ext4 root directory":  {"ext4", "-d dir", "", true},
		"ext4 other type":      {"ext4", "-t ext2", "", true},
		"btrfs root directory": {"btrfs", "--rootdir=x", "", true},
		"value missing":        {"xfs", "-b", "", true},
		"value is an option":   {"xfs", "-b -K", "", true},
		"value of a flag":      {"xfs", "-Kx", "", true},
		"end of options":       {"xfs", "-- x", "", true},
		"open quote":           {"xfs", `-L 'x`, "", true},
		"newline":              {"xfs", "-K\n-f", "", true},
		"nul":                  {"xfs", "-K\x00", "", true},
		"too long":             {"xfs", "-L " + strings.Repeat("x", 1024), "", true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParseMkfsOptions(test.fsType, test.text)
			if test.refused {
				if !errors.Is(err, volume.ErrInvalid) {
					t.Errorf("%q, %v; want ErrInvalid", got, err)
				}
				return
			}
			if err != nil || strings.Join(got, "|") != test.want {
				t.Errorf("%q, %v; want %q", got, err, test.want)
			}
		})
	}
}

func FuzzParseMkfsOptions(f *testing.F) {
	for _, seed := range []string{"-b size=1024", `-L "a b" -m 1`, "--nodesize=16k", `\`, "-d name=x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for fsType := range FSTypes {
			args, err := ParseMkfsOptions(fsType, text)
			if err != nil && !errors.Is(err, volume.ErrInvalid) {
				t.Errorf("%v", err)
			}
			for _, a := range args {
				if a == "" || strings.ContainsAny(a, "/\\\x00\n") {
					t.Errorf("argument %q of %q", a, text)
				}
			}
		}
	})
}

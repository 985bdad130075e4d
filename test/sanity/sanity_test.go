package sanity

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	suite "github.com/kubernetes-csi/csi-test/v5/pkg/sanity"

	"github.com/holdfast-csi/holdfast/pkg/volume"
	"github.com/holdfast-csi/holdfast/test/kubelet"
)

// configVariable tells a child which suite to run, as JSON.
const configVariable = "HOLDFAST_SANITY"

// config is what a child needs to know.
type config struct {
	Controller, Node string // sockets
	Dir              string // for staging and target paths
	AccessType       string // "mount" or "block"
	Parameters       map[string]string
	Replicas         string // what a volume is modified to
	OwnIDs           bool   // use identifiers of our form for volumes that don't exist
}

func TestMain(m *testing.M) {
	text := os.Getenv(configVariable)
	if text == "" {
		os.Exit(m.Run())
	}
	flag.Parse() // Ginkgo's, for the report
	var c config
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		fmt.Fprintln(os.Stderr, configVariable, err)
		os.Exit(2)
	}
	if !runSuite(c) {
		os.Exit(1)
	}
}

// outcome is the testing.T of a child.
type outcome struct{ failed bool }

func (o *outcome) Fail() { o.failed = true }

// runSuite runs csi-sanity once and reports whether it passed.
func runSuite(c config) bool {
	s := suite.NewTestConfig()
	s.Address, s.ControllerAddress = "unix://"+c.Node, "unix://"+c.Controller
	s.StagingPath, s.TargetPath = filepath.Join(c.Dir, "staging"), filepath.Join(c.Dir, "target")
	s.TestVolumeSize, s.TestVolumeExpandSize = 320<<20, 640<<20
	s.TestVolumeAccessType = c.AccessType
	s.TestVolumeParameters = c.Parameters
	s.TestVolumeMutableParameters = map[string]string{"replicas": c.Replicas}
	if c.OwnIDs {
		s.IDGen = ids{}
	}
	var result outcome
	suite.Test(&result, s)
	return !result.failed
}

// ids makes identifiers that have our form, but name nothing.
type ids struct{}

func (ids) GenerateUniqueValidVolumeID() string { return string(volume.IDFor(uuid.NewString())) }
func (ids) GenerateInvalidVolumeID() string     { return "hv-invalid" }
func (ids) GenerateUniqueValidNodeID() string   { return "node-" + uuid.NewString() }
func (ids) GenerateInvalidNodeID() string       { return "-node" }

// notClaimed are the reasons for which a spec may be skipped: each is a
// capability that the driver doesn't have. The suite's own words.
var notClaimed = []string{
	"ControllerPublishVolume not supported",
	"Controller Publish, UnpublishVolume not supported",
	"ControllerUnpublishVolume not supported",
	"Snapshot not supported",
	"Volume Cloning not supported",
	"ListSnapshots not supported",
	"GetSnapshot not supported",
	"DeleteSnapshot not supported",
	"CreateSnapshot not supported",
	"GroupControllerService not supported",
	"VolumeGroupSnapshots not supported",
}

func TestSanity(t *testing.T) {
	if missing := kubelet.Missing(); missing != "" {
		t.Skip(missing)
	}
	bin, err := kubelet.Build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Run("three nodes", func(t *testing.T) {
		s := start(t, kubelet.Options{Bin: bin, Nodes: 3, PoolSize: poolSize})
		run(t, s, config{AccessType: "mount", Parameters: map[string]string{"replicas": "3"}, Replicas: "2", OwnIDs: true})
		run(t, s, config{AccessType: "block", Parameters: map[string]string{"replicas": "2", "cacheMode": "none"}, Replicas: "3"})
	})
	t.Run("one node", func(t *testing.T) {
		s := start(t, kubelet.Options{Bin: bin, Nodes: 1, PoolSize: poolSize})
		run(t, s, config{AccessType: "mount", Parameters: map[string]string{"replicas": "1", "locality": "strict"}, Replicas: "1"})
	})
}

const (
	startTimeout = 2 * time.Minute
	suiteTimeout = 8 * time.Minute
	// poolSize is enough for the few volumes that the suite has at a time.
	poolSize = "1536Mi"
)

// start starts a standalone for the test. At its end no volume may exist, and
// nothing of it may be left on the machine.
func start(t *testing.T, o kubelet.Options) *kubelet.Standalone {
	t.Helper()
	o.Dir = filepath.Join(t.TempDir(), "s")
	s, err := kubelet.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		checkVolumesGone(ctx, t, s)
		if t.Failed() {
			t.Log(s.Tails(30))
		}
		if err := s.Stop(ctx); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(o.Dir); err != nil {
			t.Error(err)
		}
		if left, err := kubelet.Leftovers(o.Dir); err != nil || len(left) > 0 {
			t.Errorf("left behind: %s, %v", left, err)
		}
	})
	return s
}

// checkVolumesGone waits until no volume is left, and no replica of a deleted
// one. Tombstones stay for a while, in case a node comes back with a replica.
func checkVolumesGone(ctx context.Context, t *testing.T, s *kubelet.Standalone) {
	t.Helper()
	err := kubelet.Await(ctx, "all volumes to be gone", func(ctx context.Context) error {
		list, err := s.Volumes(ctx)
		for _, v := range list {
			if v.Status.Phase != volume.PhaseDeleting || len(v.Status.Replicas) > 0 {
				err = fmt.Errorf("volume %s is left (%s, replicas %+v)", v.ID, v.Status.Phase, v.Status.Replicas)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// spec is what we need of an entry of Ginkgo's report.
type spec struct {
	ContainerHierarchyTexts []string
	LeafNodeType            string
	LeafNodeText            string
	State                   string
	Failure                 struct{ Message string }
}

func (s spec) name() string {
	return strings.Join(append(s.ContainerHierarchyTexts, s.LeafNodeText), " ")
}

// run runs the suite in a child, against the controller and the first node, and
// turns its report into subtests.
func run(t *testing.T, s *kubelet.Standalone, c config) {
	t.Helper()
	node := s.Nodes()[0]
	c.Controller, c.Node = s.Controller().Socket, node.Socket
	c.Dir = filepath.Join(node.Root, "csi-sanity", c.AccessType)
	if err := os.MkdirAll(c.Dir, 0o750); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	report := filepath.Join(t.TempDir(), "report.json")
	ctx, cancel := context.WithTimeout(t.Context(), suiteTimeout)
	defer cancel()
	child := exec.CommandContext(ctx, os.Args[0], "-ginkgo.json-report="+report, "-ginkgo.no-color")
	child.Env = append(os.Environ(), configVariable+"="+string(text))
	child.WaitDelay = 10 * time.Second
	out, childErr := child.CombinedOutput()
	t.Run(fmt.Sprintf("%s, %v", c.AccessType, c.Parameters), func(t *testing.T) {
		if childErr != nil {
			t.Errorf("the suite: %v\n%s", childErr, out)
		}
		checkReport(t, report)
	})
}

// checkReport makes a subtest of each spec that ran, and checks the others.
func checkReport(t *testing.T, report string) {
	t.Helper()
	data, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	var suites []struct{ SpecReports []spec }
	if err := json.Unmarshal(data, &suites); err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, r := range suites {
		for _, s := range r.SpecReports {
			if s.LeafNodeType != "It" {
				continue
			}
			switch s.State {
			case "skipped":
				if !slices.Contains(notClaimed, s.Failure.Message) {
					t.Errorf("%s was skipped: %s", s.name(), s.Failure.Message)
				}
			case "pending": // disabled in the suite itself
				t.Logf("disabled by the suite: %s", s.name())
			default:
				ran++
				t.Run(s.name(), func(t *testing.T) {
					if s.State != "passed" {
						t.Errorf("%s: %s", s.State, s.Failure.Message)
					}
				})
			}
		}
	}
	if ran < leastSpecs {
		t.Errorf("only %d specs ran", ran)
	}
}

// leastSpecs is how many specs of csi-test v5.6.0 there are for what we claim.
const leastSpecs = 55

package volume

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestParseBytes(t *testing.T) {
	for in, want := range map[string]int64{"1": 1, "4096": 4096, "512Mi": 512 << 20, "8Gi": 8 << 30, "8GiB": 8 << 30, "1Ti": 1 << 40, "7Ki": 7 << 10} {
		if got, err := ParseBytes(in); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "0", "-1", "1.5Gi", "Gi", "8Zi", "8iG", "9999999999Ti", "0x10", "1e3"} {
		if got, err := ParseBytes(in); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %d, %v; want ErrInvalid", in, got, err)
		}
	}
}

func TestValidateName(t *testing.T) {
	for _, name := range []string{"a", "pvc-1", "Größe", "my data", "卷-1", "data 💾", strings.Repeat("x", MaxNameBytes)} {
		if err := ValidateName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", ".", "..", "a/b", "a\x00b", "a\nb", "\x7f", "\xff", strings.Repeat("x", MaxNameBytes+1),
		"a\u0085b", "\u009b31m", // C1: next line, control sequence
		"a\u202eb", "a\u200bb", "a\u00adb", "\ufeffa", // format: right to left, zero width, soft hyphen, byte order mark
		"a\u2028b", "a\u2029b", // line, paragraph
	} {
		if err := ValidateName(name); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v, want ErrInvalid", name, err)
		}
	}
}

func TestValidatePoolName(t *testing.T) {
	for _, name := range []string{"p", "nvme-1", "0", strings.Repeat("p", 63)} {
		if err := ValidatePoolName("pool", name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", "-p", "p-", "P", "nvme.1", "nvme_1", "../p", "p\n", "ä", strings.Repeat("p", 64)} {
		var field *FieldError
		if err := ValidatePoolName("pool", name); !errors.As(err, &field) || field.Field != "pool" || field.Allowed != PoolNameAllowed {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestIDs(t *testing.T) {
	if id := IDFor("x"); id.Validate() != nil || id != IDFor("x") || id == IDFor("y") {
		t.Errorf("IDFor gives %q", id)
	}
	for _, id := range []ID{"", "hv-", "../../etc", "hv-" + ID(strings.Repeat("G", 32)), IDFor("x") + "/"} {
		if err := id.Validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v, want ErrInvalid", id, err)
		}
	}
	for _, n := range []NodeID{"", "N1", "a/b", "..", "-a", NodeID(strings.Repeat("a", 254))} {
		if err := n.Validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v, want ErrInvalid", n, err)
		}
	}
}

func TestSetCondition(t *testing.T) {
	var v Volume
	at := time.Unix(1, 0)
	c := Condition{Type: ConditionDegraded, Status: true, Reason: "R", Message: "one", Since: at}
	if !v.SetCondition(c) || v.SetCondition(c) {
		t.Error("a new condition is a change, the same again is none")
	}
	c.Message, c.Since = "two", at.Add(time.Hour)
	v.SetCondition(c)
	if got, _ := v.Condition(ConditionDegraded); got.Message != "two" || !got.Since.Equal(at) {
		t.Errorf("a new message keeps the time of the status: %+v", got)
	}
	c.Status = false
	v.SetCondition(c)
	if got, _ := v.Condition(ConditionDegraded); !got.Since.Equal(c.Since) || len(v.Status.Conditions) != 1 {
		t.Errorf("a new status has a new time: %+v", v.Status.Conditions)
	}
}

func TestCloneIsDeep(t *testing.T) {
	v := Volume{Status: Status{Holder: &Holder{Node: "a"}, Replicas: []Replica{{Node: "a"}}, Conditions: []Condition{{Reason: "a"}}}}
	c := v.Clone()
	c.Status.Holder.Node, c.Status.Replicas[0].Node, c.Status.Conditions[0].Reason = "b", "b", "b"
	if v.Status.Holder.Node != "a" || v.Status.Replicas[0].Node != "a" || v.Status.Conditions[0].Reason != "a" {
		t.Error("the copy shares memory")
	}
}

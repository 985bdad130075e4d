package csi

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the generated parts of docs/storageclass.md")

// TestDocumentation holds docs/storageclass.md against the tables in the code.
func TestDocumentation(t *testing.T) {
	const file = "../../docs/storageclass.md"
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	for part, want := range map[string]string{"parameters": ParameterTable(), "filesystems": filesystemTable(), "mkfs": mkfsTable()} {
		begin := strings.Index(text, "<!-- "+part+": begin")
		end := strings.Index(text, "<!-- "+part+": end -->")
		if begin < 0 || end < begin {
			t.Fatalf("%s has no part %q", file, part)
		}
		begin += strings.Index(text[begin:], "\n") + 1
		if text[begin:end] != want && !*update {
			t.Errorf("%s, part %q, is not what the code says; run go test ./pkg/csi -run TestDocumentation -update\n%s", file, part, want)
		}
		text = text[:begin] + want + text[end:]
	}
	if *update {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func filesystemTable() string {
	var b strings.Builder
	b.WriteString("| `fsType` | Smallest volume |\n|---|---|\n")
	for _, name := range sortedKeys(FSTypes) {
		note := ""
		if name == DefaultFSType {
			note = " (the default)"
		}
		fmt.Fprintf(&b, "| `%s`%s | %d MiB |\n", name, note, FSTypes[name]>>20)
	}
	return b.String()
}

func mkfsTable() string {
	var b strings.Builder
	b.WriteString("| `fsType` | Options |\n|---|---|\n")
	for _, name := range sortedKeys(mkfsOptions) {
		fmt.Fprintf(&b, "| `%s` | `%s` |\n", name, strings.Join(sortedKeys(mkfsOptions[name]), "` `"))
	}
	return b.String()
}

package repo

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#{1,6} +(.+?) *#*$`)
	fence   = regexp.MustCompile("(?ms)^```.*?^```")
	dropped = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
	// path matches what a document calls by its place in the repository.
	path = regexp.MustCompile("`((?:cmd|pkg|test|docs|tools)/[\\w./-]+)`")
)

// anchors are a document's headings as links name them.
func anchors(text string) map[string]bool {
	found := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		name := dropped.ReplaceAllString(strings.ToLower(m[1]), "")
		found[strings.ReplaceAll(name, " ", "-")] = true
	}
	return found
}

// broken lists the links of a document that lead nowhere. Links out of the
// repository are not followed.
func broken(file string) ([]string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	text := string(b)
	var out []string
	for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
			continue
		}
		place, anchor, _ := strings.Cut(m[1], "#")
		target := text
		if place != "" {
			at := filepath.Join(filepath.Dir(file), place)
			info, err := os.Stat(at)
			if err != nil {
				out = append(out, fmt.Sprintf("%s: link to %s, which does not exist", file, m[1]))
				continue
			}
			if info.IsDir() || anchor == "" {
				continue
			}
			if b, err = os.ReadFile(at); err != nil {
				return nil, err
			}
			target = string(b)
		}
		if !anchors(target)[anchor] {
			out = append(out, fmt.Sprintf("%s: link to %s, which has no such heading", file, m[1]))
		}
	}
	for _, m := range path.FindAllStringSubmatch(text, -1) {
		if _, err := os.Stat(filepath.Join(root, m[1])); err != nil {
			out = append(out, fmt.Sprintf("%s: names %s, which does not exist", file, m[1]))
		}
	}
	return out, nil
}

func TestLinks(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md")
	cmd.Dir = root
	list, err := cmd.Output()
	if err != nil {
		t.Skipf("needs git and a work tree, to know which documents are the repository's: %v", err)
	}
	documents := strings.Fields(string(list))
	if len(documents) == 0 {
		t.Fatal("there is no document")
	}
	for _, d := range documents {
		file := filepath.Join(root, d)
		if _, err := os.Stat(file); err != nil {
			continue // deleted, and not yet committed
		}
		found, err := broken(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			t.Error(f)
		}
	}
}

// TestBrokenLinksAreFound keeps the check above honest.
func TestBrokenLinksAreFound(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a.md")
	text := "# A title, and more\n[good](a.md) [good](#a-title-and-more) [good](a.md#a-title-and-more) [far](https://example.com/x)\n" +
		"[bad](b.md) [bad](#nowhere) [bad](a.md#nowhere) `pkg/nothing/here.go` `pkg/volume`\n```\n[not a link](c.md)\n```\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	found, err := broken(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 4 {
		t.Errorf("found %d broken ones, want 4:\n%s", len(found), strings.Join(found, "\n"))
	}
}

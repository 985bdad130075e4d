package csi

import (
	"fmt"
	"slices"
	"strings"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// mkfsOption is an option of a mkfs program that a StorageClass may give. What
// isn't listed is refused: other options name devices or files, change what is
// formatted, or only print.
type mkfsOption struct {
	flag   bool     // takes no value
	refuse []string // keys of the value (or whole values) that are refused
}

var mkfsOptions = map[string]map[string]mkfsOption{
	"xfs": {
		"-b": {}, "-m": {refuse: []string{"uuid"}}, "-i": {}, "-n": {}, "-s": {}, "-L": {},
		"-d": {refuse: []string{"name", "file", "size"}},
		"-l": {refuse: []string{"logdev", "internal"}},
		"-K": {flag: true},
	},
	"ext4": {
		"-b": {}, "-C": {}, "-E": {refuse: []string{"offset", "test_fs"}}, "-e": {}, "-g": {}, "-G": {}, "-i": {}, "-I": {}, "-L": {}, "-m": {},
		"-N": {}, "-J": {refuse: []string{"device"}}, "-O": {refuse: []string{"journal_dev", "none", "clear"}}, "-T": {},
	},
	"btrfs": {
		"-n": {}, "--nodesize": {}, "-O": {refuse: []string{"list-all"}}, "--features": {refuse: []string{"list-all"}}, "-L": {}, "--label": {},
		"-m": {}, "--metadata": {}, "-d": {}, "--data": {}, "-M": {flag: true}, "--mixed": {flag: true}, "--csum": {}, "--checksum": {},
		"-K": {flag: true}, "--nodiscard": {flag: true},
	},
}

// ParseMkfsOptions splits and checks the mkfsOptions parameter for a
// filesystem. Each option's value is a word of its own in the result: "-bsize=1k"
// becomes "-b", "size=1k". ErrInvalid for what is not allowed.
func ParseMkfsOptions(fsType, text string) ([]string, error) {
	words, err := splitWords(text)
	if err != nil {
		return nil, err
	}
	table := mkfsOptions[fsType]
	var args []string
	for len(words) > 0 {
		word := words[0]
		words = words[1:]
		name, value, attached := splitOption(word)
		option, known := table[name]
		if !known {
			return nil, volume.Invalid("parameters.mkfsOptions", word, "one of "+strings.Join(sortedKeys(table), " ")+" for "+fsType)
		}
		if option.flag {
			if attached {
				return nil, volume.Invalid("parameters.mkfsOptions", word, name+" on its own")
			}
			args = append(args, name)
			continue
		}
		if !attached {
			if len(words) == 0 {
				return nil, volume.Invalid("parameters.mkfsOptions", word, "followed by its value")
			}
			value, words = words[0], words[1:]
		}
		if err := checkValue(name, value, option); err != nil {
			return nil, err
		}
		args = append(args, name, value)
	}
	return args, nil
}

// splitOption takes apart "-bsize=1k" and "--nodesize=16k".
func splitOption(word string) (name, value string, attached bool) {
	switch {
	case strings.HasPrefix(word, "--"):
		return strings.Cut(word, "=")
	case strings.HasPrefix(word, "-") && len(word) > 2:
		return word[:2], word[2:], true
	}
	return word, "", false
}

func checkValue(name, value string, option mkfsOption) error {
	if value == "" || strings.HasPrefix(value, "-") || strings.ContainsAny(value, "/\\") {
		return volume.Invalid("parameters.mkfsOptions", name+" "+value, "an option whose value is no path and no other option")
	}
	for part := range strings.SplitSeq(value, ",") {
		key, _, _ := strings.Cut(part, "=")
		if slices.Contains(option.refuse, key) {
			return volume.Invalid("parameters.mkfsOptions", name+" "+value, "without "+key)
		}
	}
	return nil
}

// maxMkfsOptionBytes bounds the parameter.
const maxMkfsOptionBytes = 1024

// splitWords splits text at blanks as a shell does, with single and double
// quotes and backslashes, but nothing else of a shell.
func splitWords(text string) ([]string, error) {
	invalid := func(why string) error { return volume.Invalid("parameters.mkfsOptions", text, why) }
	if len(text) > maxMkfsOptionBytes {
		return nil, invalid(fmt.Sprintf("at most %d bytes", maxMkfsOptionBytes))
	}
	var words []string
	var word strings.Builder
	inWord, escaped := false, false
	quote := rune(0)
	for _, r := range text {
		switch {
		case r < 0x20 && r != '\t', r == 0x7f:
			return nil, invalid("free of control characters")
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			escaped, inWord = true, true
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, inWord = r, true
		case r == ' ' || r == '\t':
			if inWord {
				words = append(words, word.String())
				word.Reset()
				inWord = false
			}
		default:
			word.WriteRune(r)
			inWord = true
		}
	}
	if quote != 0 || escaped {
		return nil, invalid("free of unclosed quotes")
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, nil
}

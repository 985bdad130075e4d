package kubelet

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Leftovers lists what of a directory is still on the machine: processes that
// have it in their command line, mounts and loop devices with anything in it,
// and files. Loop devices of a filesystem that is no longer mounted anywhere
// count too: they show "/" as their file.
func Leftovers(dir string) ([]string, error) {
	var found []string
	for _, look := range []func(string) ([]string, error){processes, mounts, loops, files} {
		some, err := look(dir)
		if err != nil {
			return nil, err
		}
		found = append(found, some...)
	}
	return found, nil
}

func processes(dir string) ([]string, error) {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var found []string
	for _, f := range lines {
		pid := filepath.Base(filepath.Dir(f))
		b, err := os.ReadFile(f)
		if err != nil || pid == strconv.Itoa(os.Getpid()) {
			continue // it has ended meanwhile
		}
		args := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
		if slices.ContainsFunc(args[1:], func(a string) bool { return within(dir, a) || strings.Contains(a, "="+dir+"/") }) {
			found = append(found, fmt.Sprintf("process %s: %s", pid, strings.Join(args, " ")))
		}
	}
	return found, nil
}

func mounts(dir string) ([]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var found []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if slices.ContainsFunc(f, func(word string) bool { return within(dir, word) }) {
			found = append(found, "mount "+f[4])
		}
	}
	return found, nil
}

func loops(dir string) ([]string, error) {
	backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var found []string
	for _, f := range backing {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // it was detached meanwhile
		}
		file := strings.TrimSpace(string(b))
		if within(dir, file) || file == "/" {
			found = append(found, fmt.Sprintf("loop device /dev/%s on %s", filepath.Base(filepath.Dir(filepath.Dir(f))), file))
		}
	}
	return found, nil
}

func files(dir string) ([]string, error) {
	if _, err := os.Lstat(dir); err == nil {
		return []string{"directory " + dir}, nil
	} else if !os.IsNotExist(err) {
		return nil, err
	}
	return nil, nil
}

func within(dir, path string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

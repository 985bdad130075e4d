package standalone

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/volume"
)

// ProcessStatus is what the control socket tells of a process.
type ProcessStatus struct {
	Name    string `json:"name"`
	PID     int    `json:"pid"`
	Running bool   `json:"running"`
	Exit    string `json:"exit,omitempty"`
	Log     string `json:"log"`
	Socket  string `json:"socket,omitempty"`
}

// Status tells of every process, in starting order.
func (s *Supervisor) Status() []ProcessStatus {
	var out []ProcessStatus
	for _, name := range s.layout.Processes {
		st := ProcessStatus{Name: name, Log: Log(s.opt.Dir, name)}
		if name != StoreName {
			st.Socket = Socket(s.opt.Dir, name)
		}
		if p := s.find(name); p != nil {
			st.PID, st.Running = p.cmd.Process.Pid, p.running()
			if !st.Running {
				st.Exit = fmt.Sprint(p.cmd.ProcessState)
			}
		}
		out = append(out, st)
	}
	return out
}

func controlSocket(dir string) string { return filepath.Join(dir, "ctl.sock") }

// listenControl makes the control socket.
func (s *Supervisor) listenControl() (net.Listener, error) {
	path := controlSocket(s.opt.Dir)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) { // a killed supervisor's; the directory is locked
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return l, nil
}

// serveControl answers the control socket until ctx ends, and closes it.
func (s *Supervisor) serveControl(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s.Status()) // the client went away
	})
	verbs := map[string]func(context.Context, string) error{
		"kill": func(_ context.Context, n string) error { return s.Kill(n) },
		"stop": func(_ context.Context, n string) error { return s.Stop(n) },
		"start": func(ctx context.Context, n string) error {
			if err := s.Start(n); err != nil {
				return err
			}
			return s.awaitReady(ctx, n)
		},
	}
	for verb, f := range verbs {
		mux.HandleFunc("POST /"+verb+"/{name}", func(w http.ResponseWriter, r *http.Request) {
			if err := f(r.Context(), r.PathValue("name")); err != nil {
				http.Error(w, err.Error(), http.StatusConflict)
			}
		})
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("control socket: %w", err)
	}
	return nil
}

// Client speaks to the running supervisor of a directory.
type Client struct{ http *http.Client }

// NewClient makes a client; nothing is dialled yet.
func NewClient(dir string) *Client {
	return &Client{http: &http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", controlSocket(dir))
		},
	}}}
}

// Status asks for all processes.
func (c *Client) Status(ctx context.Context) ([]ProcessStatus, error) {
	body, err := c.do(ctx, http.MethodGet, "status")
	if err != nil {
		return nil, err
	}
	var out []ProcessStatus
	return out, json.Unmarshal(body, &out)
}

// Do asks for "start", "stop" or "kill" of a process, and waits until it is
// ready or has ended.
func (c *Client) Do(ctx context.Context, verb, name string) error {
	_, err := c.do(ctx, http.MethodPost, verb+"/"+url.PathEscape(name))
	return err
}

func (c *Client) do(ctx context.Context, method, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://standalone/"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("no standalone runs there: %w: %w", volume.ErrUnavailable, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(strings.TrimSpace(string(body)))
	}
	return body, err
}

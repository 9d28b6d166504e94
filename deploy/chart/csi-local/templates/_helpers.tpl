{{- define "csi-local.labels" -}}
app.kubernetes.io/name: csi-local
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "csi-local.selector.controller" -}}
app.kubernetes.io/name: csi-local
app.kubernetes.io/component: controller
{{- end }}

{{- define "csi-local.selector.node" -}}
app.kubernetes.io/name: csi-local
app.kubernetes.io/component: node
{{- end }}

{{- define "csi-local.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- /* The name of a group's DaemonSet and ConfigMap. */}}
{{- define "csi-local.node.name" -}}
{{ if .name }}csi-local-node-{{ .name }}{{ else }}csi-local-node{{ end }}
{{- end }}

{{- define "csi-local.node.directory" -}}
{{ .Values.kubeletDir | trimSuffix "/" }}/plugins/csi-local.io
{{- end }}

{{- /*
The host's directories that a group needs, as JSON: those of its pools of kind path, those that hold the file of kind
image, and what is given besides. What lies in a directory that is mounted anyway is not mounted twice. Call with
{root, group}.
*/}}
{{- define "csi-local.node.hostPaths" -}}
{{- $given := list (printf "%s/" (trimSuffix "/" .root.Values.kubeletDir)) (printf "%s/" (trimSuffix "/" .root.Values.runDir)) "/dev/" }}
{{- $found := list }}
{{- $wanted := .group.directories | default list }}
{{- range .group.pools }}
  {{- if .path }}{{ $wanted = append $wanted .path }}{{ end }}
  {{- if .image }}{{ $wanted = append $wanted (dir .image) }}{{ end }}
{{- end }}
{{- range $wanted }}
  {{- $path := clean . }}
  {{- if eq $path "/" }}{{ fail "a pool needs a directory of its own: the root of the node's filesystem is not mounted into the pod" }}{{ end }}
  {{- $covered := false }}
  {{- range $given }}{{ if hasPrefix . (printf "%s/" $path) }}{{ $covered = true }}{{ end }}{{ end }}
  {{- if not $covered }}{{ $found = append $found $path }}{{ end }}
{{- end }}
{{- $found | uniq | sortAlpha | toJson }}
{{- end }}

{{- /* What every sidecar of the controller has in common. Call with {root, name, sidecar}; arguments follow. */}}
{{- define "csi-local.sidecar.args" -}}
- --csi-address=/csi/csi.sock
- --timeout={{ .root.Values.sidecars.timeout }}
- --retry-interval-start={{ .root.Values.sidecars.retryIntervalStart }}
- --retry-interval-max={{ .root.Values.sidecars.retryIntervalMax }}
- --kube-api-qps={{ .root.Values.sidecars.kubeAPIQPS }}
- --kube-api-burst={{ .root.Values.sidecars.kubeAPIBurst }}
- --leader-election={{ .root.Values.sidecars.leaderElection }}
- --leader-election-namespace={{ .root.Release.Namespace }}
# Where all controllers died at once, nobody leads for the length of a lease.
- --leader-election-lease-duration=10s
- --leader-election-renew-deadline=7s
- --leader-election-retry-period=2s
- --http-endpoint=:{{ .port }}
- --v={{ .root.Values.sidecars.logLevel }}
{{- end }}

{{- define "csi-local.sidecar.rest" -}}
ports:
  - {name: {{ .name }}, containerPort: {{ .port }}}
livenessProbe:
  httpGet: {path: /healthz/leader-election, port: {{ .name }}}
  initialDelaySeconds: 10
  periodSeconds: 20
  timeoutSeconds: 10
securityContext:
  {{- include "csi-local.unprivileged" . | nindent 2 }}
resources:
  {{- toYaml .sidecar.resources | nindent 2 }}
volumeMounts:
  - {name: socket, mountPath: /csi}
{{- end }}

{{- define "csi-local.unprivileged" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* A group's configuration file. Call with {root, group}. */}}
{{- define "csi-local.node.config" -}}
runDir: {{ .root.Values.runDir }}
kubeletDir: {{ .root.Values.kubeletDir | trimSuffix "/" }}
maxVolumes: {{ if hasKey .group "maxVolumes" }}{{ int .group.maxVolumes }}{{ else }}{{ int .root.Values.node.maxVolumes }}{{ end }}
logLevel: {{ .root.Values.logLevel }}
logFormat: {{ .root.Values.logFormat }}
pools:
  {{- range .group.pools }}
  - {{ toJson . }}
  {{- end }}
{{- end }}

{{- define "weft.image" -}}
{{ .root.Values.image.prefix }}/{{ .name }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "weft.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "weft.unprivileged" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- /* Where a pod may run and whence its image comes: `own` are the component's values. */ -}}
{{- define "weft.placement" -}}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: [{{ range $place, $name := . }}{{ if $place }}, {{ end }}{name: {{ $name }}}{{ end }}]
{{- end }}
nodeSelector: {{- merge (dict "kubernetes.io/os" "linux") (.own.nodeSelector | default dict) | toYaml | nindent 2 }}
{{- with .own.tolerations }}
tolerations: {{- toYaml . | nindent 0 }}
{{- end }}
{{- with .own.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .own.topologySpreadConstraints }}
topologySpreadConstraints: {{- toYaml . | nindent 0 }}
{{- end }}
{{- end }}

{{- /* Metadata of a pod: its own labels win. */ -}}
{{- define "weft.metadata" -}}
labels: {{- merge .labels (.root.Values.podLabels | default dict) | toYaml | nindent 2 }}
{{- with .root.Values.podAnnotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* One pod of several at a time leaves when nodes are drained. */ -}}
{{- define "weft.budget" -}}
{{- if gt (int .replicas) 1 }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: {{ .name }}, namespace: {{ .root.Values.namespace }}}
spec:
  maxUnavailable: 1
  selector: {matchLabels: {app.kubernetes.io/name: {{ .name }}}}
{{- end }}
{{- end }}

{{- /* Pods of the classes that Kubernetes brings may run here also where the API server wants a quota that says so, as on GKE:
       kubernetes.io/docs/concepts/policy/resource-quotas, "Limit Priority Class consumption by default". */ -}}
{{- define "weft.quota" -}}
apiVersion: v1
kind: ResourceQuota
metadata: {name: weft-critical-pods, namespace: {{ . }}}
spec:
  hard: {pods: 1G}
  scopeSelector:
    matchExpressions:
    - {scopeName: PriorityClass, operator: In, values: [system-cluster-critical, system-node-critical]}
{{- end }}

{{- /* What the operator gives the gateways' pods, as JSON. */ -}}
{{- define "weft.gatewayPod" -}}
{{- $own := .Values.gateways }}
{{- $pod := dict
  "imagePullSecrets" (.Values.image.pullSecrets | default list)
  "tolerations" ($own.tolerations | default list)
  "priorityClassName" ($own.priorityClassName | default "system-cluster-critical")
  "labels" (.Values.podLabels | default dict)
  "annotations" (.Values.podAnnotations | default dict) }}
{{- /* Operators of releases before it refuse what they do not know. */ -}}
{{- with $own.seLinuxOptions }}
{{- $pod = set $pod "seLinuxOptions" . }}
{{- end }}
{{- with $own.serviceAnnotations }}
{{- $pod = set $pod "serviceAnnotations" . }}
{{- end }}
{{- with $own.resources }}
{{- $pod = set $pod "resources" . }}
{{- end }}
{{- $pod | toJson }}
{{- end }}

{{- /* "true" where pods need a SecurityContextConstraints that allows them what they have: on OpenShift. */ -}}
{{- define "weft.openshift" -}}
{{- $scc := (.Values.openshift | default dict).scc | default "Auto" }}
{{- or (eq $scc "Always") (and (eq $scc "Auto") (.Capabilities.APIVersions.Has "security.openshift.io/v1")) }}
{{- end }}

{{- /* The runtime's CNI directories on the host, as JSON: conf, bins (separated by colons), and what is mounted. That is the
       directories above, so that one that is replaced is seen, and so that symbolic links lead somewhere; of k3s and GKE not
       more, beside them are keys. */ -}}
{{- define "weft.cni" -}}
{{- $own := .Values.netop }}
{{- $k3s := "/var/lib/rancher/k3s" }}
{{- $microk8s := "/var/snap/microk8s" }}
{{- $known := dict
  "" (dict "conf" "/etc/cni/net.d" "bins" "/opt/cni/bin")
  "gke" (dict
    "conf" "/etc/cni/net.d"
    "bins" "/home/kubernetes/bin"
    "mounts" (list "/etc/cni" "/home/kubernetes/bin"))
  "openshift" (dict "conf" "/etc/kubernetes/cni/net.d" "bins" "/var/lib/cni/bin")
  "k3s" (dict
    "conf" (print $k3s "/agent/etc/cni/net.d")
    "bins" (print $k3s "/data/cni:" $k3s "/data/current/bin")
    "mounts" (list (print $k3s "/agent/etc/cni") (print $k3s "/data")))
  "microk8s" (dict
    "conf" (print $microk8s "/current/args/cni-network")
    "bins" (print $microk8s "/current/opt/cni/bin")
    "mounts" (list $microk8s)) }}
{{- $platform := get $known ($own.platform | default "") }}
{{- $conf := $own.cniConfDir | default $platform.conf }}
{{- $bins := $own.cniBinDir | default $platform.bins }}
{{- $mounts := $own.cniMounts | default list }}
{{- if and (not $mounts) $platform.mounts (not $own.cniConfDir) (not $own.cniBinDir) }}
{{- $mounts = $platform.mounts }}
{{- end }}
{{- if not $mounts }}
{{- range prepend (splitList ":" $bins) $conf }}
{{- $above := dir . }}
{{- /* Not the whole of /opt or /usr/lib. */ -}}
{{- $wide := or (lt (len (splitList "/" $above)) 3) (has $above (list "/usr/lib" "/usr/libexec" "/usr/local" "/var/lib")) }}
{{- $mounts = append $mounts ($wide | ternary . $above) }}
{{- end }}
{{- end }}
{{- dict "conf" $conf "bins" $bins "mounts" (uniq $mounts) | toJson }}
{{- end }}

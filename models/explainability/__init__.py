"""Attribution, SHAP values and feature importance."""
